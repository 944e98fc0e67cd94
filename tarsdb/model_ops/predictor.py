"""Any ONNX model of rows of numbers in and some values out, run by onnxruntime (extra ``onnx``).

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
from tarsdb.records import dataclass

FILE = "model.onnx"
MAX_BYTES = 1 << 31
_ROWS = 1024  # of a call: asked between them whether to stop
_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32,
}  # fmt: skip
_ELSEWHERE = b"\x0a\x08location"  # how a graph names a file that holds a tensor


@dataclass(frozen=True)
class _Input:
    """One input: lists of ``width`` numbers, 0: of any number; flat where it takes one a row."""

    name: str
    dtype: type[np.generic]
    width: int
    is_flat: bool

    @classmethod
    def of(cls, given: Any) -> _Input:
        shape, dtype = given.shape, _TYPES[given.type]
        if len(shape) == 1:
            return cls(given.name, dtype, 1, True)
        return cls(given.name, dtype, shape[1] if isinstance(shape[1], int) else 0, False)

    def array(self, rows: Sequence[Any], of: str) -> npt.NDArray[Any]:
        """Return rows as the model takes them; ``of`` names the input in messages."""
        width = self.width
        for number, row in enumerate(rows):
            if isinstance(row, str) or not isinstance(row, (Sequence, np.ndarray)):
                raise DataError(f"predict: row {number + 1}{of} is {row!r:.60}, no list of numbers")
            width = width or len(row)
            if len(row) != width:
                raise DataError(
                    f"predict: row {number + 1}{of} has {len(row)} features, "
                    f"the model takes {width}"
                )
        shape = (len(rows),) if self.is_flat else (len(rows), width)
        try:
            return np.array([list(row) for row in rows], self.dtype).reshape(shape)
        except (TypeError, ValueError) as error:
            raise DataError(f"predict: a row{of} is no list of numbers: {error}") from error


class Predictor:
    """A model over rows of features. Several threads may call it at once.

    Parameters
    ----------
    data : bytes
        The ONNX file.

    Attributes
    ----------
    width : int
        Features of a row, of all inputs; 0: any number.
    inputs, outputs : tuple of str
    """

    def __init__(self, data: bytes) -> None:
        self._session = open_session(data)
        inputs = self._session.get_inputs()
        if not inputs or any(len(e.shape) not in (1, 2) or e.type not in _TYPES for e in inputs):
            named = ", ".join(f"{each.name}: {each.type} {each.shape}" for each in inputs)
            raise NotSupportedError(
                f"the ONNX model takes {named:.200}",
                "tensors of numbers, (rows, features) or (rows)",
            )
        self._inputs = [_Input.of(each) for each in inputs]
        widths = [each.width for each in self._inputs]
        self.width = sum(widths) if all(widths) else 0
        fixed = [each.shape[0] for each in inputs if isinstance(each.shape[0], int)]
        self._together = not fixed  # else a fixed number of rows a call
        if fixed and set(fixed) != {1}:
            raise NotSupportedError(f"the ONNX model takes exactly {max(fixed)} rows at a time")
        self.inputs = tuple(each.name for each in inputs)
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

        A row is a tuple of lists of numbers, one for each input.

        Raises
        ------
        DataError
            A row is no list of numbers, has another width, or the model refuses it.
        InterruptError
            Asked to stop.
        """
        features, found = self._features(rows), list[Any]()
        step = _ROWS if self._together else 1
        for start in range(0, len(rows), step):
            if interrupted():
                raise InterruptError(f"predict was interrupted after {start} of {len(rows)} rows")
            count = min(step, len(rows) - start)
            found += self._run(
                {n: each[start : start + step] for n, each in features.items()}, count
            )
            if progress is not None:
                progress(len(found), len(rows))
        return found

    def _features(self, rows: Sequence[Any]) -> dict[str, npt.NDArray[Any]]:
        found = {}
        for place, each in enumerate(self._inputs):
            of = f" of input {each.name}" if len(self._inputs) > 1 else ""
            found[each.name] = each.array([row[place] for row in rows], of)
        return found

    def _run(self, features: dict[str, npt.NDArray[Any]], count: int) -> list[Any]:
        try:
            results = self._session.run(None, features)
        except Exception as error:  # its own kinds, none of which is public
            raise DataError(f"predict: the ONNX model failed: {error!s:.300}") from error
        for name, result in zip(self.outputs, results, strict=True):
            if len(result) != count:
                raise ModelError(
                    f"predict: output {name} has {len(result)} rows for {count} of input"
                )
        columns = [[_plain(result[row]) for row in range(count)] for result in results]
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


def open_session(data: bytes, threads: int = 0) -> Any:
    """Open an ONNX model of one file; 0 threads: as many as onnxruntime likes.

    Raises
    ------
    ModelFormatError
        The file is damaged, or keeps its weights in other files.
    NotSupportedError
        onnxruntime is not installed.
    """
    if _ELSEWHERE in data:
        raise ModelFormatError("the ONNX model keeps tensors in other files", "save it as one")
    try:
        import onnxruntime
    except ImportError as error:
        raise NotSupportedError(
            "this ONNX model needs the package onnxruntime", hint="pip install 'tarsdb[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
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
