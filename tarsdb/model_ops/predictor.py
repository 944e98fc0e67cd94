"""Any ONNX model of one row of numbers in and some values out, run by onnxruntime (extra ``onnx``).

For models this package does not compute itself: regressions, trees, networks over features. Knows
no meaning of inputs and outputs beyond their names, types and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import DataError, InterruptError, ModelError, ModelFormatError, NotSupportedError
from tarsdb.model_ops.shelf import Shelf

FILE = "model.onnx"
MAX_BYTES = 1 << 31
_ROWS = 1024  # of a call: asked between them whether to stop
_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32,
}  # fmt: skip
_ELSEWHERE = b"\x0a\x08location"  # how a graph names a file that holds a tensor


class Predictor:
    """A model over rows of features. Several threads may call it at once.

    Parameters
    ----------
    data : bytes
        The ONNX file.

    Attributes
    ----------
    width : int
        Features of a row; 0: any number.
    outputs : tuple of str
    """

    def __init__(self, data: bytes) -> None:
        if _ELSEWHERE in data:
            raise ModelFormatError("the ONNX model keeps tensors in other files", "save it as one")
        self._session = _session(data)
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 2 or inputs[0].type not in _TYPES:
            named = ", ".join(f"{each.name}: {each.type} {each.shape}" for each in inputs)
            raise NotSupportedError(
                f"the ONNX model takes {named:.200}", "one tensor of numbers, (rows, features)"
            )
        self._input, self._dtype = inputs[0].name, _TYPES[inputs[0].type]
        self.width = shape[1] if isinstance(shape[1], int) else 0
        self._together = not isinstance(shape[0], int)  # else a fixed number of rows a call
        if not self._together and shape[0] != 1:
            raise NotSupportedError(f"the ONNX model takes exactly {shape[0]} rows at a time")
        self.outputs = tuple(each.name for each in self._session.get_outputs())
        self.weight_bytes = len(data)

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], tensors: Mapping[str, Any],
        options: Mapping[str, Any] | None = None, shelf: Shelf | None = None,
    ) -> Predictor:  # fmt: skip
        """Make a predictor of a model's files; raises as :func:`check_predictor`.

        Its weights are its own format's, not packed by us: the shelf stays as it is.
        """
        check_options(options or {})
        return cls(files[FILE])

    def predict(
        self, rows: Sequence[Any], *, progress: Callable[[int, int], None] | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> list[Any]:  # fmt: skip
        """Return what the model makes of each row: a value, or an object of all by output's name.

        Raises
        ------
        DataError
            A row is no list of numbers, has another width, or the model refuses it.
        InterruptError
            Asked to stop.
        """
        features, found = self._features(rows), list[Any]()
        step = _ROWS if self._together else 1
        for start in range(0, len(features), step):
            if interrupted():
                raise InterruptError(f"predict was interrupted after {start} of {len(rows)} rows")
            found += self._run(features[start : start + step])
            if progress is not None:
                progress(len(found), len(rows))
        return found

    def _features(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        width = self.width
        for number, row in enumerate(rows):
            if isinstance(row, str) or not isinstance(row, (Sequence, np.ndarray)):
                raise DataError(f"predict: row {number + 1} is {row!r:.60}, no list of numbers")
            width = width or len(row)
            if len(row) != width:
                raise DataError(
                    f"predict: row {number + 1} has {len(row)} features, the model takes {width}"
                )
        try:
            return np.array([list(row) for row in rows], self._dtype).reshape(len(rows), width)
        except (TypeError, ValueError) as error:
            raise DataError(f"predict: a row is no list of numbers: {error}") from error

    def _run(self, features: npt.NDArray[Any]) -> list[Any]:
        try:
            results = self._session.run(None, {self._input: features})
        except Exception as error:  # its own kinds, none of which is public
            raise DataError(f"predict: the ONNX model failed: {error!s:.300}") from error
        for name, result in zip(self.outputs, results, strict=True):
            if len(result) != len(features):
                raise ModelError(
                    f"predict: output {name} has {len(result)} rows for {len(features)} of input"
                )
        columns = [[_plain(result[row]) for row in range(len(features))] for result in results]
        if len(columns) == 1:
            return columns[0]
        return [
            dict(zip(self.outputs, values, strict=True)) for values in zip(*columns, strict=True)
        ]


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options: there are none but the task."""
    for name in options:
        if name != "task":
            raise ModelError(f"a model for predict has no option {name!r}")


def _session(data: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise NotSupportedError(
            "this ONNX model needs the package onnxruntime", hint="pip install 'tarsdb[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own kinds, none of which is public
        raise ModelFormatError(f"onnxruntime refuses the model: {error!s:.300}") from error


def _plain(value: Any) -> Any:
    """Return an output's value as JSON has it; a tensor of one element is that element."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.reshape(-1)[0]) if value.size == 1 else [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
