"""The compiled step of a decoder: which kernel, its tables of addresses, its memory, its threads.

Knows arrays and sizes; not where they come from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import InternalError
from tarsdb.kernels import dispatch, profiling
from tarsdb.kernels.forms import CompiledKinds
from tarsdb.kernels.native import address
from tarsdb.kernels.packing import PackedMatrix, aligned
from tarsdb.kernels.team import Team, cores, yielding
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]
U16 = npt.NDArray[np.uint16]
Value = PackedMatrix | npt.NDArray[Any] | int | None

THREAD_BYTES = 4 << 20
"""Weight bytes below which another thread costs more than it saves."""


@dataclass(frozen=True)
class StepKernel:
    """A compiled step; ``kernels/cpu/decoder.py`` says what it does."""

    variant: str
    step: Callable[..., None]

    @property
    def form(self) -> str:
        """What weights are packed for."""
        return self.variant.partition("/")[2]


_compiled = CompiledKinds("decoder", StepKernel)
_adapted = CompiledKinds("adapted_decoder", StepKernel)
_marked = CompiledKinds("profiled_decoder", StepKernel)
finish = _compiled.finish


def prepare(kind: str) -> None:
    """Let the step of a kind of weights be compiled in the background."""
    _compiled.current(kind)


def wait(kind: str) -> StepKernel | None:
    """Return the step of a kind, compiled if need be; None at the portable level."""
    return None if dispatch.level() == "portable" else _compiled.wait(kind)


class PackedAdapter:
    """What an adapter adds to products, packed, and the addresses of it.

    Parameters
    ----------
    layers : sequence of mapping
        Of each layer, by the names ``ADAPTED`` of ``kernels/cpu/decoder.py``: float32 matrices
        packed, first to the rank, then to the outputs; what is not adapted is left out.

    Attributes
    ----------
    table : (layers, 4, 3) int64
    rank : int
        The largest.
    nbytes : int
    """

    def __init__(self, layers: Sequence[Mapping[str, tuple[PackedMatrix, PackedMatrix]]]) -> None:
        from tarsdb.kernels.cpu.decoder import ADAPTED

        self._held = layers
        self.table = np.zeros((len(layers), len(ADAPTED), 3), np.int64)
        for number, layer in enumerate(layers):
            for name, (down, up) in layer.items():
                entry = (down.address, up.address, down.columns)
                self.table[number, ADAPTED.index(name)] = entry
        self.rank = int(self.table[:, :, 2].max(initial=0))
        self.nbytes = sum(
            _bytes(part) for layer in layers for pair in layer.values() for part in pair
        )


@dataclass(frozen=True)
class StepInput:
    """Arrays of a step, C order, checked by the caller.

    Parameters
    ----------
    tokens, offsets, positions, wanted : int32
        As in ``StepBatch``.
    tables : (s, b) int32
    slots : (n,) int64
        Where in the cache each row's keys and values go: 16 * block + place.
    angles : (kinds, n, head_dim) float32
    keys, values : float32, or uint16 (bfloat16) unless matrices are float32
        Of the cache.
    runs : (r, 3) int64
        First row, number of rows and adapter of rows that an adapter adds to.
    adapters : sequence of PackedAdapter
        Those that ``runs`` names.
    """

    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    tables: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int64]
    wanted: npt.NDArray[np.int32]
    angles: F32
    keys: F32 | U16
    values: F32 | U16
    runs: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    adapters: Sequence[PackedAdapter] = ()


class DecoderStep:
    """A model's arrays, ready to be stepped. One step at a time; others wait.

    Parameters
    ----------
    kernel : StepKernel
    sizes : mapping
        By the names ``MODEL`` and ``REAL`` of ``kernels/cpu/decoder.py``; arrays are kept alive.
    layers : sequence of mapping
        By the names ``LAYER``; what is left out is None.
    """

    def __init__(
        self, kernel: StepKernel, sizes: Mapping[str, Any], layers: Sequence[Mapping[str, Value]]
    ) -> None:
        from tarsdb.kernels.cpu import decoder as layout

        self._layout, self._kernel, self._held = layout, kernel, (sizes, layers)
        table = [[_address(layer.get(name)) for name in layout.LAYER] for layer in layers]
        self._layers = np.array(table, np.int64).reshape(len(layers), len(layout.LAYER))
        self._reals = np.array([sizes[name] for name in layout.REAL], np.float32)
        known = {**sizes, "layers": len(layers), "reals": self._reals, "layer_table": self._layers}
        self._model = np.array([_address(known[name]) for name in layout.MODEL], np.int64)
        self._sizes = {name: int(value) for name, value in sizes.items() if isinstance(value, int)}
        self._sync = aligned(layout.sync_bytes(len(layers)))
        self._yielding = yielding()
        self._memory: dict[str, npt.NDArray[np.uint8]] = {}
        self._team = Team()
        self._lock = threading.Lock()
        self.weight_bytes = sum(
            map(_bytes, [*sizes.values(), *(v for x in layers for v in x.values())])
        )
        self.threads = cores() if self.weight_bytes >= THREAD_BYTES else 1

    @property
    def workspace_bytes(self) -> int:
        """Bytes of memory for what a step computes, as large as the largest step needed."""
        return sum(len(memory) for memory in self._memory.values())

    def run(self, batch: StepInput) -> F32:
        """Step; returns logits (wanted, vocabulary), the caller's."""
        size = self._layout.cache_bytes(self._kernel.variant.partition("/")[0])
        if batch.keys.itemsize != size:
            raise InternalError(
                f"the step reads keys of {size} bytes, the cache holds {batch.keys.dtype}"
            )
        logits = np.empty((len(batch.wanted), self._sizes["vocabulary"]), np.float32)
        with self._lock:
            adapted = self._adapted(batch)
            table = self._table(batch, logits, adapted)
            self._sync[:] = 0
            step = self._with_adapters().step if len(batch.runs) else self._kernel.step
            times = profiling.asked()
            if times is not None and times.marked and not len(batch.runs):
                step = profiling.with_marks(_marked, self._kernel).step
            model, place = address(self._model), address(table)
            profiling.run(lambda: self._team.run(
                lambda part, parts: step(part, parts, model, place), self.threads
            ))  # fmt: skip
        return logits

    def _table(
        self, batch: StepInput, logits: F32, adapted: Mapping[str, Any]
    ) -> npt.NDArray[np.int64]:
        sizes, count = self._sizes, len(batch.tokens)
        own = self._scratch_bytes(batch)
        heads = sizes["heads"] + 2 * sizes["kv_heads"]
        floats = {
            "stream": sizes["hidden"], "qkv": heads * sizes["head_dim"],
            "context": sizes["heads"] * sizes["head_dim"], "activations": sizes["intermediate"],
        }  # fmt: skip
        values: dict[str, Any] = {
            "rows": count, "sequences": len(batch.positions), "wanted_rows": len(batch.wanted),
            "table_blocks": batch.tables.shape[1], "cache_groups": batch.keys.shape[1],
            "logits": logits, "scratch_bytes": own, "sync": self._sync,
            "yielding": self._yielding, "scratch": self._room("scratch", own * self.threads),
            "normed": self._room("normed", 4 * sizes["hidden"] * max(count, len(batch.wanted))),
            **{name: self._room(name, 4 * width * count) for name, width in floats.items()},
            **vars(batch), **adapted, "marks": self._marks(),
        }  # fmt: skip
        return np.array([_address(values[name]) for name in self._layout.STEP], np.int64)

    def _marks(self) -> int:
        times = profiling.asked()
        if times is None:
            return 0
        return times.marks(self._layout, len(self._layers))

    def _with_adapters(self) -> StepKernel:
        """Return the kernel for rows with adapters, compiled on first use."""
        found = _adapted.wait(self._kernel.variant.partition("/")[0])
        if found is None or found.variant != self._kernel.variant:
            raise InternalError("the kernel of steps with adapters cannot be compiled here")
        return found

    def _adapted(self, batch: StepInput) -> dict[str, Any]:
        """Return what rows with adapters need; nothing where there are none."""
        if not len(batch.runs):
            return {"runs": 0, "run_table": 0, "adapter_table": 0, "unfused": 0, "lowered": 0,
                    "lowered_bytes": 0}  # fmt: skip
        tables = np.concatenate([adapter.table for adapter in batch.adapters])
        rank = max(adapter.rank for adapter in batch.adapters)
        lowered = 4 * rank * int(batch.runs[:, 1].max())
        lowered = -(-lowered // 64) * 64
        wide = 128 * -(-self._sizes["intermediate"] // 16)
        return {
            "runs": len(batch.runs), "run_table": batch.runs, "adapter_table": tables,
            "unfused": self._room("unfused", wide * len(batch.tokens)),
            "lowered": self._room("lowered", lowered * self.threads), "lowered_bytes": lowered,
        }  # fmt: skip

    def _scratch_bytes(self, batch: StepInput) -> int:
        """Bytes of one thread's own memory: a product's, or attention's."""
        from tarsdb.kernels.cpu import gemm, paged_attention

        sizes, (kind, form) = self._sizes, self._kernel.variant.split("/")
        deepest = max(sizes["hidden"], sizes["heads"] * sizes["head_dim"], sizes["intermediate"])
        products = gemm.scratch_bytes(kind, form, deepest)
        attention = int(paged_attention.scratch_bytes(batch.tables.shape[1], sizes["width"]))
        return -(-max(products, attention) // 64) * 64

    def _room(self, name: str, size: int) -> npt.NDArray[np.uint8]:
        memory = self._memory.get(name)
        if memory is None or len(memory) < size:
            memory = self._memory[name] = aligned(size)
        return memory


def _address(value: Value) -> int:
    if value is None:
        return 0
    if isinstance(value, PackedMatrix):
        return value.address
    return value if isinstance(value, int) else address(value)


def _bytes(value: Any) -> int:
    array = value.data if isinstance(value, PackedMatrix) else value
    return array.nbytes if isinstance(array, np.ndarray) else 0
