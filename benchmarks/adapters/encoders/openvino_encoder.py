"""OpenVINO: the exported graph with a precision hint, or quantised by NNCF with real texts."""

from __future__ import annotations

import pathlib

import numpy as np
import openvino

from benchmarks.adapters.encoders import Encode
from benchmarks.adapters.encoders.onnx_export import exported
from benchmarks.adapters.encoders.padded import Tokens, by_batches, padded

CALIBRATION_TEXTS = 128


def make(folder: pathlib.Path, precision: str, threads: int) -> Encode:
    """Load the graph; NNCF's post-training quantisation for transformers makes int8."""
    core = openvino.Core()
    path = exported(folder)
    model = core.read_model(_quantized(folder, path) if precision == "int8" else path)
    hints = {
        "INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }  # fmt: skip
    compiled = core.compile_model(model, "CPU", hints)

    def forward(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.asarray(compiled([ids, mask, np.zeros_like(ids)])[0])

    return by_batches(folder, forward)


def _quantized(folder: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    made = path.with_name("openvino_int8.xml")
    if made.exists():
        return made
    import nncf

    from benchmarks.texts import mixed_texts

    tokens = Tokens(folder)

    def feed(text: str) -> list[np.ndarray]:
        ids, mask = padded(tokens([text]))
        return [ids, mask, np.zeros_like(ids)]

    texts = nncf.Dataset(mixed_texts(CALIBRATION_TEXTS, seed=2), feed)
    model = openvino.Core().read_model(path)
    openvino.save_model(
        nncf.quantize(model, texts, model_type=nncf.ModelType.TRANSFORMER,
                      subset_size=CALIBRATION_TEXTS), made,
    )  # fmt: skip
    return made
