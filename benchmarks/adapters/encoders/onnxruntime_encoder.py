"""onnxruntime: the exported graph, or the same with weights and activations in eight bits."""

from __future__ import annotations

import pathlib

import numpy as np
import onnxruntime

from benchmarks.adapters.encoders import Encode
from benchmarks.adapters.encoders.onnx_export import exported
from benchmarks.adapters.encoders.padded import by_batches


def make(folder: pathlib.Path, precision: str, threads: int) -> Encode:
    """Load the graph; eight bits are made by the library's dynamic quantisation, per channel."""
    path = exported(folder)
    if precision == "int8":
        path = _quantized(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

    def forward(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return np.asarray(session.run(None, feed)[0])

    return by_batches(folder, forward)


def _quantized(path: pathlib.Path) -> pathlib.Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made = path.with_name("model_int8.onnx")
    if not made.exists():
        quantize_dynamic(path, made, per_channel=True, weight_type=QuantType.QInt8,
                         op_types_to_quantize=["MatMul"])  # fmt: skip
    return made
