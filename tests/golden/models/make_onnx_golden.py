"""Export the tiny encoders of this folder to ONNX with PyTorch.

    pip install torch transformers onnx onnxscript onnxruntime
    PYTHONPATH=. python tests/golden/models/make_onnx_golden.py

Writes ``tiny_bert.onnx``, ``tiny_distilbert.onnx``, ``tiny_bert_optimised.onnx`` (the first as
onnxruntime's optimiser rewrites it) and, no encoders, ``tiny_classifier.onnx``,
``tiny_inputs.onnx`` and ``tiny_image.onnx``.
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


def optimised(source: pathlib.Path, path: pathlib.Path) -> None:
    """Write an exported encoder with its operations put together, its mask of any length."""
    from onnxruntime.transformers.optimizer import optimize_model

    model = onnx.load(source)
    for axis, name in enumerate(("batch", "sequence")):
        model.graph.input[1].type.tensor_type.shape.dim[axis].dim_param = name
    onnx.save(model, path)
    sizes = {"num_heads": 3, "hidden_size": 24}
    found = optimize_model(str(path), model_type="bert", opt_level=0, **sizes)
    found.save_model_to_file(str(path))


def inputs() -> onnx.ModelProto:
    """Return the sum of two features times a factor for each of three kinds: 1, 10 or 100."""
    nodes = [
        onnx.helper.make_node("Gather", ["factors", "kind"], ["factor"]),
        onnx.helper.make_node("ReduceSum", ["features", "axes"], ["sum"], keepdims=0),
        onnx.helper.make_node("Mul", ["sum", "factor"], ["price"]),
    ]
    real, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    graph = onnx.helper.make_graph(
        nodes, "inputs",
        [onnx.helper.make_tensor_value_info("features", real, ["n", 2]),
         onnx.helper.make_tensor_value_info("kind", whole, ["n"])],
        [onnx.helper.make_tensor_value_info("price", real, ["n"])],
        [onnx.numpy_helper.from_array(np.array([1, 10, 100], np.float32), "factors"),
         onnx.numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )  # fmt: skip
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9
    )


def image() -> onnx.ModelProto:
    """Return a model that takes more than rows of features."""
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["image"], ["same"])], "image",
        [onnx.helper.make_tensor_value_info("image", kind, ["n", 2, 2])],
        [onnx.helper.make_tensor_value_info("same", kind, ["n", 2, 2])],
    )  # fmt: skip
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9
    )


def main() -> None:
    """Write the files."""
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for name, model in (("classifier", classifier()), ("inputs", inputs()), ("image", image())):
        onnx.save(model, folder / f"tiny_{name}.onnx")
    for name in EXPORTED:
        export(name, folder / f"tiny_{name}.onnx")
    optimised(folder / "tiny_bert.onnx", folder / "tiny_bert_optimised.onnx")


if __name__ == "__main__":
    main()
