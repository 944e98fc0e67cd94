"""Export the tiny encoders of this folder to ONNX with PyTorch.

    pip install torch transformers onnx onnxscript
    PYTHONPATH=. python tests/golden/models/make_onnx_golden.py

Writes ``tiny_bert.onnx``, ``tiny_distilbert.onnx`` and, no encoder, ``tiny_classifier.onnx``.
"""

from __future__ import annotations

import pathlib
import sys
import warnings

import numpy as np
import onnx
import torch
from transformers import AutoConfig, AutoModel

from tests.golden.models.tiny_models import CONFIGS, tiny_tensors

HERE = pathlib.Path(__file__).parent
EXPORTED = ("bert", "distilbert")


class Hidden(torch.nn.Module):
    """A model that takes ids and mask by position and returns the last layer."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the last layer's vectors."""
        found: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return found


def export(name: str, path: pathlib.Path) -> None:
    """Write one model."""
    config = CONFIGS[name]
    arguments = {key: value for key, value in config.items() if key != "model_type"}
    settings = AutoConfig.for_model(config["model_type"], **arguments)
    options = {"add_pooling_layer": False} if name == "bert" else {}
    model = AutoModel.from_config(settings, attn_implementation="eager", **options).eval()
    weights = {key: torch.from_numpy(value) for key, value in tiny_tensors(config).items()}
    result = model.load_state_dict(weights, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise SystemExit(f"weights do not fit: {result}")
    ids = torch.arange(3, 10)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Hidden(model), (ids, torch.ones_like(ids)), str(path), dynamo=False, opset_version=17,
            input_names=["input_ids", "attention_mask"], output_names=["last_hidden_state"],
            dynamic_axes={"input_ids": {0: "batch", 1: "sequence"}},
        )  # fmt: skip


def classifier() -> onnx.ModelProto:
    """Return a softmax over a product with three features, and the label it chooses."""
    weight = np.array([[1.0, -2.0], [0.5, 0.25], [-1.0, 3.0]], np.float32)
    nodes = [
        onnx.helper.make_node("MatMul", ["features", "weight"], ["scores"]),
        onnx.helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        onnx.helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "classifier",
        [onnx.helper.make_tensor_value_info("features", kind, ["n", 3])],
        [onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["n"]),
         onnx.helper.make_tensor_value_info("probabilities", kind, ["n", 2])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )  # fmt: skip
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9
    )


def main() -> None:
    """Write the files."""
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    onnx.save(classifier(), folder / "tiny_classifier.onnx")
    for name in EXPORTED:
        export(name, folder / f"tiny_{name}.onnx")


if __name__ == "__main__":
    main()
