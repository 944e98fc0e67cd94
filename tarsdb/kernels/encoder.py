"""The compiled encoder: which kernel, its tables of addresses, its memory.

Knows arrays and sizes; not where they come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.kernels import dispatch, profiling
from tarsdb.kernels.forms import CompiledKinds
from tarsdb.kernels.native import address
from tarsdb.kernels.packing import PackedMatrix, aligned, pack_bias
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

BLOCK = 48
"""Rows that go through a layer together; as in kernels/cpu, not imported before it is used."""
PATIENCE_SECONDS = 1.0
"""How long the first panel waits for kernels: loading them from the disk cache takes less."""


@dataclass(frozen=True)
class EncoderKernel:
    """A compiled encoder; ``kernels/cpu/encoder.py`` says what it does."""

    variant: str
    encode: Callable[..., None]


_compiled = CompiledKinds("encoder", EncoderKernel)
_marked = CompiledKinds("profiled_encoder", EncoderKernel)
finish, wait = _compiled.finish, _compiled.wait
_patient_until: dict[str, float] = {}


def current(kind: str) -> EncoderKernel | None:
    """Return the encoder of a kind of weights if it is ready, or will be soon; None otherwise.

    Only calls within PATIENCE_SECONDS of the first one wait.
    """
    found = _compiled.current(kind)
    if found is None and dispatch.level() != "portable":
        now = time.monotonic()
        until = _patient_until.setdefault(kind, now + PATIENCE_SECONDS)
        if now < until:
            return _compiled.wait(kind, until - now)
    return found


def prepare(kind: str) -> None:
    """Let the encoder of a kind of weights be loaded or compiled in the background."""
    _compiled.current(kind)


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an encoder.

    Parameters
    ----------
    head_size : int
        A multiple of 16.
    activation : int
        Of ``gemm_reference``; gated ones included.
    pre_norm : bool
        Norms lie beside the sums that they read.
    turned : int
        Elements of a head that are turned by angles, first and second half together; 0: none.
    """

    layers: int
    hidden: int
    heads: int
    head_size: int
    intermediate: int
    activation: int
    epsilon: float
    pre_norm: bool = False
    turned: int = 0


class ModelTable:
    """Addresses of a model's arrays, which it keeps alive.

    Parameters
    ----------
    shape : EncoderShape
    norm : two float32 (hidden,)
        Scale and shift of the embeddings' norm.
    relative : float32 (heads, 2 * longest - 1), optional
        Added to a score by distance key - query; in powers of two, like the scores.
    layers : sequence of sequences
        In the order of ``kernels/cpu/encoder.py``: packed qkv, its bias, context, bias, scale and
        shift of its norm, expand, bias, reduce, bias, scale and shift.
    views : two sequences of int
        Of each layer, which angles it takes, and the tokens that it sees to either side, 0 for all.
    """

    def __init__(
        self, shape: EncoderShape, norm: Sequence[F32], relative: F32 | None,
        layers: Sequence[Sequence[PackedMatrix | F32]], views: tuple[Sequence[int], Sequence[int]],
    ) -> None:  # fmt: skip
        self.shape = shape
        self._held: list[object] = []
        by_distance = (0, 0) if relative is None else self._by_distance(relative)
        windows = {reach: self._window(reach) for reach in set(views[1]) if reach}
        lines = [
            [*map(self._address, layer), *windows.get(reach, by_distance), reach, kind]
            for layer, kind, reach in zip(layers, *views, strict=True)
        ]
        table = self._keep(np.array(lines, np.int64))
        epsilon = int(np.float32(shape.epsilon).view(np.int32))
        sizes = (shape.layers, shape.hidden, shape.heads, shape.head_size, shape.intermediate,
                 shape.activation, epsilon, int(shape.pre_norm), shape.turned)  # fmt: skip
        scale, shift = (self._address(part) for part in norm)
        self.address = self._keep(np.array([*sizes, scale, shift, table], np.int64))

    def _by_distance(self, relative: F32) -> tuple[int, int]:
        """Return the address of distance 0 of the first head, and bytes from head to head."""
        longest, heads = relative.shape[1] // 2, len(relative)
        padded = np.zeros((heads, relative.shape[1] + 16), np.float32)
        padded[:, : relative.shape[1]] = relative
        return self._keep(padded) + 4 * longest, 4 * padded.shape[1]

    def _window(self, reach: int) -> tuple[int, int]:
        """Return the same of what hides tokens further away; no score further out is computed."""
        distance = np.arange(-reach - 2 * BLOCK, reach + 2 * BLOCK + 1)
        hidden = np.where(np.abs(distance) > reach, np.float32(-np.inf), np.float32(0))
        return self._keep(hidden) + 4 * (reach + 2 * BLOCK), 0

    def _address(self, part: PackedMatrix | F32) -> int:
        if isinstance(part, PackedMatrix):
            self._held.append(part)
            return part.address
        return self._keep(pack_bias(*np.atleast_2d(part)))

    def _keep(self, array: npt.NDArray[np.generic]) -> int:
        self._held.append(array)
        return address(array)


class Memory:
    """Arrays of one call at a time, for panels of up to ``tokens`` tokens and kernels of a form.

    Attributes
    ----------
    hidden, update : float32 (tokens, hidden to the next 16)
        Summands of the embeddings; ``hidden`` receives the result, of a pre-norm encoder
        ``update``.
    nbytes : int
        Bytes of all its arrays.
    """

    def __init__(self, shape: EncoderShape, tokens: int, form: str) -> None:
        from tarsdb.kernels.cpu.gemm import scratch_bytes

        hidden, wide = _whole(shape.hidden), _whole(shape.intermediate)
        keys, heads = _whole(tokens), shape.heads * shape.head_size
        kind, variant = form.split("/")
        product = scratch_bytes(kind, variant, max(hidden, wide, heads))
        self.tokens = tokens
        self.hidden, self.update = _rows(tokens, hidden), _rows(tokens, hidden)
        others: list[npt.NDArray[Any]] = [
            _rows(tokens, 3 * heads), _rows(keys, shape.head_size), _rows(BLOCK, keys),
            _rows(1, BLOCK), aligned(product), _rows(BLOCK, hidden), _rows(BLOCK, wide),
        ]  # fmt: skip
        self._held: list[npt.NDArray[Any]] = [self.hidden, *others]
        self._table = np.array([*map(address, self._held), 0], np.int64)
        self.address = address(self._table)
        self.nbytes = self.update.nbytes + sum(array.nbytes for array in self._held)

    def set_marks(self, marks: int) -> None:
        """Say where the kernel with marks leaves them."""
        self._table[-1] = marks


def encode(
    kernel: EncoderKernel, model: ModelTable, offsets: I64, angles: F32, memory: Memory
) -> None:
    """Run all layers over the embeddings in ``memory``.

    Parameters
    ----------
    offsets : int64 (texts + 1,), C order
        Where each text's rows start; no text is empty, and the last is at most ``memory.tokens``.
    angles : float32 (kinds, tokens, model.shape.turned), C order
        Cosines, then sines, by which queries and keys of each token are turned.
    """
    times = profiling.asked()
    if times is not None and times.marked:
        from tarsdb.kernels.cpu import encoder as layout

        kernel = profiling.with_marks(_marked, kernel)
        memory.set_marks(times.marks(layout, model.shape.layers))
    profiling.run(lambda: kernel.encode(
        model.address, address(offsets), len(offsets) - 1, address(angles), memory.address,
        address(memory.update), BLOCK,
    ))  # fmt: skip


def _whole(count: int) -> int:
    return -(-count // 16) * 16


def _rows(rows: int, width: int) -> F32:
    return aligned(4 * rows * width).view(np.float32).reshape(rows, width)
