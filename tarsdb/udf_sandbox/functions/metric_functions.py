"""Metrics: scalar functions of two vectors, called with many vectors and one query.

The query goes into the guest once a batch, as a column of one row that stands for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tarsdb.columns import Column
from tarsdb.errors import UdfValidationError
from tarsdb.types import Kind, SqlType
from tarsdb.udf_sandbox.functions.function import ScalarFunction
from tarsdb.udf_sandbox.limits import Budget


def check_metric(name: str, arguments: Sequence[SqlType], returns: SqlType) -> None:
    """Raise UdfValidationError unless a signature is that of a metric."""
    fits = len(arguments) == 2 and arguments[0] == arguments[1]
    if fits and arguments[0].kind is Kind.VECTOR and returns.kind in (Kind.REAL, Kind.DOUBLE):
        return
    signature = f"({', '.join(map(str, arguments))}) RETURNS {returns}"
    raise UdfValidationError(
        f"function {name}: role 'metric' needs (a VECTOR(n), b VECTOR(n)) RETURNS REAL or DOUBLE, "
        f"not {signature}"
    )


class MetricFunction(ScalarFunction):
    """A function of two vectors, (a VECTOR(n), b VECTOR(n)) RETURNS REAL or DOUBLE."""

    def compare(
        self, vectors: np.ndarray, query: np.ndarray, *, is_swapped: bool, budget: Budget
    ) -> npt.NDArray[np.float32]:
        """Return the distance of each vector, NaN where the guest gives NaN or NULL.

        Parameters
        ----------
        vectors : float32 (n, dim)
        query : float32 (dim,)
        is_swapped : bool
            The query is the first argument, not the second.
        budget : Budget

        Raises
        ------
        UdfTrapError, UdfLimitError, UdfError, InterruptError
        """
        if not len(vectors):
            return np.empty(0, np.float32)
        first, second = self.arguments
        pair = [Column(first, vectors), Column(second, query[np.newaxis])]
        found = self._run(pair[::-1] if is_swapped else pair, len(vectors), budget)
        values = found.values.astype(np.float32, copy=False)
        if found.validity is not None:
            values[~found.validity] = np.nan
        return values
