"""Exact scan: distances of rows to queries with explicit SIMD, and the k smallest by heap.

One compiled function per element kind and vector width. All arguments are integers (addresses
and counts), so a call costs well under a microsecond and never re-types an array. Rows are read
where they lie, by unaligned loads. A pair of row and query is summed the same way in every mode,
so single, batched, filtered and full scans agree to the last bit.

Knows no blocks' owners, no threads; ``native`` calls it. Everything a kernel calls is in this
file, as the disk cache of Numba demands.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import (
    emit_prefetch,
    prefetch,
    put_int,
    put_long,
    read_byte,
    read_int,
    read_long,
)

L2, IP, COSINE, L1, HAMMING, JACCARD = range(6)  # as in reference.py; a test compares them
F32, F16, I8, BIT = range(4)
KINDS = {"f32": F32, "f16": F16, "i8": I8, "bit": BIT}
LEVELS = {"avx512": 16, "avx2": 8}
"""Instruction set level -> float32 lanes of a register."""

ROWS = 4  # rows of a tile: four independent sums hide the latency of an addition
CHUNK = 64  # rows collected before their distances are computed
BATCH_CHUNK = 16  # the same for several queries: the chunk stays in the L1 cache
FEW = 24  # rows of a list of positions that are asked for at once; more would not stay in the L1
AHEAD = 6144  # bytes in advance that the scan for one query asks memory for; measured
SIGNATURE = types.int64(*[types.int64] * 15)

_FLOAT, _DOUBLE, _HALF = ir.FloatType(), ir.DoubleType(), ir.HalfType()
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_METRICS_OF = {
    F32: (L2, IP, COSINE, L1), F16: (L2, IP, COSINE, L1), I8: (L2, IP, COSINE, L1),
    BIT: (HAMMING, JACCARD),
}  # fmt: skip
_ELEMENT = {F32: _FLOAT, F16: _HALF, I8: _I8, BIT: _I8}
_QUERY_ELEMENT = {F32: _FLOAT, F16: _FLOAT, I8: _I8, BIT: _I8}
_SIZE = {_FLOAT: 4, _HALF: 2, _I8: 1}


# --- code generation: one tile of ROWS rows against some queries -----------------------------


@dataclass(frozen=True)
class _Shape:
    """What a tile is compiled for."""

    kind: int
    lanes: int
    queries: int

    @property
    def step(self) -> int:
        """Elements of a row that one turn of the loop takes."""
        return {F32: self.lanes, F16: self.lanes, I8: 2 * self.lanes, BIT: 16}[self.kind]

    @property
    def sums(self) -> ir.Type:
        """Type of an accumulator register."""
        if self.kind == BIT:
            return ir.VectorType(_I64, 2)
        return ir.VectorType(_I32 if self.kind == I8 else _FLOAT, self.lanes)

    def encode(self) -> int:
        return self.kind | self.lanes << 4 | self.queries << 12

    @classmethod
    def decode(cls, code: int) -> _Shape:
        return cls(code & 15, code >> 4 & 255, code >> 12)


class _Tile:
    """Emits the loop, the tail and the final distances of one tile for one metric."""

    def __init__(self, builder: Any, shape: _Shape, metric: int) -> None:
        self.b, self.shape, self.metric = builder, shape, metric
        pairs = shape.queries * ROWS
        zero = ir.Constant(shape.sums, None)
        counts = {COSINE: (pairs, ROWS, shape.queries), JACCARD: (pairs, pairs, 0)}
        self.accs = [
            [cgutils.alloca_once_value(builder, zero) for _ in range(count)]
            for count in counts.get(metric, (pairs, 0, 0))
        ]

    def call(self, name: str, result: ir.Type, *args: Any) -> Any:
        kind = ir.FunctionType(result, [arg.type for arg in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), args)

    def at(self, address: Any, element: ir.Type) -> Any:
        return self.b.inttoptr(address, element.as_pointer())

    def load(self, address: Any, element: ir.Type) -> Any:
        """Load one step and bring it to the type sums are made of."""
        vector = ir.VectorType(element, self.shape.step)
        value = self.b.load(self.at(address, vector), align=1)
        if element == _HALF:
            return self.b.fpext(value, ir.VectorType(_FLOAT, self.shape.step))
        if self.shape.kind == I8:
            return self.b.sext(value, ir.VectorType(_I16, self.shape.step))
        return self.b.bitcast(value, self.shape.sums) if self.shape.kind == BIT else value

    def multiply_add(self, pointer: Any, x: Any, y: Any) -> None:
        old = self.b.load(pointer)
        if self.shape.kind == I8:
            wide = self.shape.lanes == LEVELS["avx512"]
            name = "llvm.x86.avx512.pmaddw.d.512" if wide else "llvm.x86.avx2.pmadd.wd"
            new = self.b.add(old, self.call(name, self.shape.sums, x, y))
        else:
            name = f"llvm.fma.v{self.shape.lanes}f32"
            new = self.call(name, self.shape.sums, x, y, old)
        self.b.store(new, pointer)

    def count(self, pointer: Any, bits: Any) -> None:
        ones = self.call("llvm.ctpop.v2i64", self.shape.sums, bits)
        self.b.store(self.b.add(self.b.load(pointer), ones), pointer)

    def pair(self, number: int, x: Any, q: Any) -> None:
        """Add one step of a row and a query to the pair's sums."""
        b, acc = self.b, self.accs[0][number]
        if self.metric == L2:
            difference = b.sub(x, q) if self.shape.kind == I8 else b.fsub(x, q)
            self.multiply_add(acc, difference, difference)
        elif self.metric in (IP, COSINE):
            self.multiply_add(acc, x, q)
        elif self.metric == L1:
            self.absolute(acc, x, q)
        elif self.metric == HAMMING:
            self.count(acc, b.xor(x, q))
        else:
            self.count(acc, b.and_(x, q))
            self.count(self.accs[1][number], b.or_(x, q))

    def absolute(self, acc: Any, x: Any, q: Any) -> None:
        b, lanes = self.b, self.shape.lanes
        if self.shape.kind == I8:
            difference = b.sub(x, q)
            false = ir.Constant(ir.IntType(1), 0)
            name = f"llvm.abs.v{2 * lanes}i16"
            difference = self.call(name, difference.type, difference, false)
            self.multiply_add(acc, difference, ir.Constant(difference.type, [1] * 2 * lanes))
        else:
            difference = self.call(f"llvm.fabs.v{lanes}f32", self.shape.sums, b.fsub(x, q))
            b.store(b.fadd(b.load(acc), difference), acc)

    def step(self, rows: list[Any], queries: list[Any]) -> None:
        """Add one step at the given addresses to all sums."""
        xs = [self.load(address, _ELEMENT[self.shape.kind]) for address in rows]
        for j, address in enumerate(queries):
            q = self.load(address, _QUERY_ELEMENT[self.shape.kind])
            for i, x in enumerate(xs):
                self.pair(j * ROWS + i, x, q)
            if self.metric == COSINE:
                self.multiply_add(self.accs[2][j], q, q)
        if self.metric == COSINE:
            for i, x in enumerate(xs):
                self.multiply_add(self.accs[1][i], x, x)

    def run(self, rows: list[Any], queries: list[Any], width: Any, ahead: Any) -> None:
        """Sum over a whole row: full steps, then the tail from a zero-padded copy."""
        b, step = self.b, ir.Constant(_I64, self.shape.step)
        size = ir.Constant(_I64, _SIZE[_ELEMENT[self.shape.kind]])
        query_size = ir.Constant(_I64, _SIZE[_QUERY_ELEMENT[self.shape.kind]])
        with cgutils.for_range(b, b.udiv(width, step)) as loop:
            done = b.mul(loop.index, step)
            x, q = b.mul(done, size), b.mul(done, query_size)
            now = [b.add(r, x) for r in rows]
            if self.shape.queries == 1:  # bound by memory: ask for what comes next
                for address in now:
                    emit_prefetch(b, b.add(address, ahead))
            self.step(now, [b.add(a, q) for a in queries])
        left = b.urem(width, step)
        with b.if_then(b.icmp_unsigned("!=", left, ir.Constant(_I64, 0)), likely=False):
            done = b.sub(width, left)
            x, q = b.mul(done, size), b.mul(done, query_size)
            kind = self.shape.kind
            self.step(
                [self.padded(b.add(r, x), left, _ELEMENT[kind]) for r in rows],
                [self.padded(b.add(a, q), left, _QUERY_ELEMENT[kind]) for a in queries],
            )

    def padded(self, address: Any, left: Any, element: ir.Type) -> Any:
        """Copy the last elements into zeros and return the address of the copy."""
        b, size = self.b, ir.Constant(_I64, _SIZE[element])
        whole = ir.VectorType(element, self.shape.step)
        buffer = cgutils.alloca_once(b, whole)
        b.store(ir.Constant(whole, None), buffer)
        base = b.ptrtoint(buffer, _I64)
        with cgutils.for_range(b, left) as loop:
            offset = b.mul(loop.index, size)
            value = b.load(self.at(b.add(address, offset), element), align=1)
            b.store(value, self.at(b.add(base, offset), element), align=1)
        return base

    def total(self, pointer: Any) -> Any:
        """Return the sum of an accumulator's lanes as a scalar."""
        value, b = self.b.load(pointer), self.b
        lanes = value.type.count
        if self.shape.kind == I8:
            return self.call(f"llvm.vector.reduce.add.v{lanes}i32", _I32, value)
        if self.shape.kind == BIT:
            return self.call("llvm.vector.reduce.add.v2i64", _I64, value)
        while lanes > 1:
            lanes //= 2
            halves = [
                b.shuffle_vector(value, value, ir.Constant(
                    ir.VectorType(_I32, lanes), list(range(start, start + lanes))))
                for start in (0, lanes)
            ]  # fmt: skip
            value = b.fadd(*halves)
        return b.extract_element(value, ir.Constant(_I32, 0))

    def number(self, pointer: Any, signed: bool = False) -> Any:
        """Return a sum as float64."""
        value, b = self.total(pointer), self.b
        if self.shape.kind in (F32, F16):
            return b.fpext(value, _DOUBLE)
        return b.sitofp(value, _DOUBLE) if signed else b.uitofp(value, _DOUBLE)

    def distance(self, j: int, i: int) -> Any:
        """Return the final float32 distance of query j and row i."""
        b, pair, one = self.b, j * ROWS + i, ir.Constant(_DOUBLE, 1.0)
        if self.shape.kind in (F32, F16) and self.metric != COSINE:
            return self.plain(self.total(self.accs[0][pair]))
        value = self.number(self.accs[0][pair], signed=self.metric in (IP, COSINE))
        if self.metric == L2:
            value = self.call("llvm.sqrt.f64", _DOUBLE, value)
        elif self.metric == IP:
            value = b.fsub(ir.Constant(_DOUBLE, 0.0), value)
        elif self.metric == COSINE:
            norms = b.fmul(self.number(self.accs[1][i]), self.number(self.accs[2][j]))
            cosine = b.fdiv(value, self.call("llvm.sqrt.f64", _DOUBLE, norms))
            value = self.clamped(b.fsub(one, cosine))
        elif self.metric == JACCARD:
            either = self.number(self.accs[1][pair])
            apart = b.fsub(one, b.fdiv(value, either))
            none = b.fcmp_ordered("==", value, ir.Constant(_DOUBLE, 0.0))
            value = b.select(none, one, apart)
        return b.fptrunc(value, _FLOAT)

    def plain(self, value: Any) -> Any:
        """Return the distance of a float32 sum, correctly rounded."""
        if self.metric == L2:
            return self.call("llvm.sqrt.f32", _FLOAT, value)
        return self.b.fsub(ir.Constant(_FLOAT, 0.0), value) if self.metric == IP else value

    def clamped(self, value: Any) -> Any:
        """Bring a cosine distance into 0..2; NaN stays."""
        for op, bound in (("<", 0.0), (">", 2.0)):
            limit = ir.Constant(_DOUBLE, bound)
            value = self.b.select(self.b.fcmp_ordered(op, value, limit), limit, value)
        return value


@intrinsic(prefer_literal=True)
def _tile(typingctx, shape, metric, rows, queries, stride, width, out, pitch, ahead):  # type: ignore[no-untyped-def]
    """Distances of ROWS rows (addresses at ``rows``) to the shape's number of queries.

    Query j lies at ``queries + j * stride``; its distances go to ``out + j * pitch`` (bytes).
    A tile of one query asks for the memory ``ahead`` bytes further on.
    """
    plan = _Shape.decode(shape.literal_value)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, metric, rows, queries, stride, width, out, pitch, ahead = args
        number = lambda value: ir.Constant(_I64, value)  # noqa: E731
        table = b.inttoptr(rows, _I64.as_pointer())
        row_at = [b.load(b.gep(table, [number(i)])) for i in range(ROWS)]
        query_at = [b.add(queries, b.mul(stride, number(j))) for j in range(plan.queries)]
        for code in _METRICS_OF[plan.kind]:
            with b.if_then(b.icmp_signed("==", metric, number(code))):
                tile = _Tile(b, plan, code)
                tile.run(row_at, query_at, width, ahead)
                for j in range(plan.queries):
                    line = b.add(out, b.mul(pitch, number(j)))
                    for i in range(ROWS):
                        target = tile.at(b.add(line, number(4 * i)), _FLOAT)
                        b.store(tile.distance(j, i), target)
        return context.get_dummy_value()

    return types.void(shape, *[types.int64] * 8), codegen


# --- the k smallest: a max-heap of (key, rowid) ----------------------------------------------

_WORST = 0x7FFFFFFF  # key of NaN: after every distance in either direction


@linked
def _sift_down(keys, ids, size, key, rowid):  # type: ignore[no-untyped-def]
    """Put an entry at the root and restore the heap."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        top = read_int(keys, child)
        right = child + 1
        if right < size:
            other = read_int(keys, right)
            if other > top or (other == top and read_long(ids, right) > read_long(ids, child)):
                child, top = right, other
        if key > top or (key == top and rowid > read_long(ids, child)):
            break
        put_int(keys, at, top)
        put_long(ids, at, read_long(ids, child))
        at = child
    put_int(keys, at, key)
    put_long(ids, at, rowid)


@linked
def _offer(keys, ids, size, k, key, rowid):  # type: ignore[no-untyped-def]
    """Offer an entry to the heap of the k smallest; returns the heap's size."""
    if size == k:
        top = read_int(keys, 0)
        if key < top or (key == top and rowid < read_long(ids, 0)):
            _sift_down(keys, ids, k, key, rowid)
        return size
    at = size
    while at > 0:
        parent = (at - 1) // 2
        above = read_int(keys, parent)
        if key < above or (key == above and rowid < read_long(ids, parent)):
            break
        put_int(keys, at, above)
        put_long(ids, at, read_long(ids, parent))
        at = parent
    put_int(keys, at, key)
    put_long(ids, at, rowid)
    return size + 1


@linked
def _sort(keys, ids, size, flip):  # type: ignore[no-untyped-def]
    """Turn a heap into distances (float32 bits) in order."""
    for end in range(size - 1, 0, -1):
        key, rowid = read_int(keys, end), read_long(ids, end)
        put_int(keys, end, read_int(keys, 0))
        put_long(ids, end, read_long(ids, 0))
        _sift_down(keys, ids, end, key, rowid)
    for at in range(size):
        key = read_int(keys, at)
        if key == _WORST:
            put_int(keys, at, 0x7FC00000)
        else:
            key ^= flip
            put_int(keys, at, key ^ ((key >> 31) & 0x7FFFFFFF))


@linked
def _select(bits, rowid_at, n, keys, ids, size, k, flip):  # type: ignore[no-untyped-def]
    """Offer n distances (float32 bits) to a heap; returns the heap's size."""
    bound = read_int(keys, 0) if size == k else _WORST
    for i in range(n):
        raw = read_int(bits, i)
        key = (raw ^ ((raw >> 31) & 0x7FFFFFFF)) ^ flip  # an integer of the same order
        if raw & 0x7FFFFFFF > 0x7F800000:
            key = _WORST
        if key <= bound:
            size = _offer(keys, ids, size, k, key, read_long(read_long(rowid_at, i), 0))
            bound = read_int(keys, 0) if size == k else _WORST
    return size


# --- the scan --------------------------------------------------------------------------------


def make_scan(kind: str, level: str) -> Any:
    """Return the (not yet compiled) scan of an element kind for an instruction set level.

    Parameters of the scan, all int64
    ---------------------------------
    table, blocks : address of (blocks + 1, 4) int64 rows data, rowids, live (0: all), first
        position; the last row holds only the end position. Number of blocks.
    start, stop : range of positions, or of indices into ``positions``
    positions : address of int64 positions, or 0 for all
    row_bytes, width : bytes of a row, elements of a row
    queries, count : address and number of queries, contiguous
    metric, descending : metric code; 1 for the farthest rows
    k : rows wanted per query, or 0 for all distances in order of position
    values, ids : k > 0: (count, k) float32 and int64, sorted. k = 0: (count, stop - start)
        float32 and (stop - start,) int64.
    scratch : :func:`scratch_bytes` of memory
    query_bytes : bytes of a query

    Returns the number of entries written per query.
    """
    lanes = LEVELS[level]
    several = lanes // 4
    one_query = _Shape(KINDS[kind], lanes, 1).encode()
    many_queries = _Shape(KINDS[kind], lanes, several).encode()

    @njit(nogil=True)
    def scan(  # type: ignore[no-untyped-def]
        table, blocks, start, stop, positions, row_bytes, width, queries, count, query_bytes,
        options, k, values, ids, scratch,
    ):  # fmt: skip
        metric, flip = options & 15, -(options >> 4 & 1)
        limit = CHUNK if count == 1 else BATCH_CHUNK
        rowid_at = scratch + 8 * (CHUNK + ROWS)
        buffer = rowid_at + 8 * CHUNK
        pitch = 4 * CHUNK
        ahead = 0 if positions != 0 else AHEAD
        few = positions != 0 and stop - start <= FEW
        size = block = 0
        first = last = 0  # positions of the current block
        at = start
        while at < stop:
            n = 0
            while n < limit and at < stop:
                place = read_long(positions, at) if positions != 0 else at
                if place < first or place >= last:
                    low, high = 0, blocks - 1
                    while low < high:
                        middle = (low + high + 1) // 2
                        if read_long(table, 4 * middle + 3) <= place:
                            low = middle
                        else:
                            high = middle - 1
                    block = 4 * low
                    first, last = read_long(table, block + 3), read_long(table, block + 7)
                row, live = place - first, read_long(table, block + 2)
                if live == 0 or read_byte(live, row) != 0:
                    line = read_long(table, block) + row * row_bytes
                    if few:
                        for offset in range(0, min(row_bytes, 2048), 64):
                            prefetch(line + offset)
                    put_long(scratch, n, line)
                    put_long(rowid_at, n, read_long(table, block + 1) + 8 * row)
                    n += 1
                at += 1
            for pad in range(n, n + ROWS - 1 if n else 0):
                put_long(scratch, pad, read_long(scratch, n - 1))
            done = 0
            while done < count:
                query, line = queries + done * query_bytes, buffer + done * pitch
                taken = several if count - done >= several else 1
                for r in range(0, n, ROWS):
                    if positions != 0 and not few and done == 0:
                        for ahead in range(r + ROWS, min(r + 2 * ROWS, n)):
                            for offset in range(0, min(row_bytes, 2048), 64):
                                prefetch(read_long(scratch, ahead) + offset)
                    if taken == 1:
                        _tile(one_query, metric, scratch + 8 * r, query, query_bytes, width,
                              line + 4 * r, pitch, ahead)  # fmt: skip
                    else:
                        _tile(many_queries, metric, scratch + 8 * r, query, query_bytes, width,
                              line + 4 * r, pitch, ahead)  # fmt: skip
                done += taken
            if k == 0:
                for i in range(n):
                    put_long(ids, size + i, read_long(read_long(rowid_at, i), 0))
                    for q in range(count):
                        target = values + 4 * q * (stop - start)
                        put_int(target, size + i, read_int(buffer + q * pitch, i))
                size += n
                continue
            grown = size
            for q in range(count):
                grown = _select(buffer + q * pitch, rowid_at, n, values + 4 * k * q,
                                ids + 8 * k * q, size, k, flip)  # fmt: skip
            size = grown
        for q in range(count if k else 0):
            _sort(values + 4 * k * q, ids + 8 * k * q, size, flip)
        return size

    return scan


def scratch_bytes(count: int) -> int:
    """Return the scratch memory a scan of ``count`` queries needs."""
    return 8 * (2 * CHUNK + ROWS) + 4 * CHUNK * (count + 1)
