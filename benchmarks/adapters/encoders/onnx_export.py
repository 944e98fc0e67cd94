"""The model as an ONNX file, made once by torch and kept in the temporary folder."""

from __future__ import annotations

import pathlib
import tempfile

NAMES = ("input_ids", "attention_mask", "token_type_ids")
FOLDER = pathlib.Path(tempfile.gettempdir()) / "tarsdb-benchmark-onnx"


def exported(folder: pathlib.Path) -> pathlib.Path:
    """Return the path of the float32 graph: ids, mask, types (b, t) int64 to hidden (b, t, dim)."""
    path = FOLDER / "model.onnx"
    if path.exists():
        return path
    import torch
    from transformers import AutoModel

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, input_ids, attention_mask, token_type_ids):  # type: ignore[no-untyped-def]
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    FOLDER.mkdir(exist_ok=True)
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=512)}
    torch.onnx.export(
        Hidden(), tuple(torch.ones((2, 9), dtype=torch.int64) for _ in NAMES), str(path),
        input_names=NAMES, output_names=["hidden"], dynamo=True, external_data=False,
        dynamic_shapes=dict.fromkeys(NAMES, shape),
    )  # fmt: skip
    return path
