"""A decoder's step in one call: all layers over some rows, by one thread or several together.

Every thread runs :func:`step` with its own part number; each phase is shared out by rows, heads or
columns and ends where all wait for each other. Who computes an element changes nothing about how
it is computed. Addresses come in tables of int64: ``kernels/decoder.py`` fills them, in the order
of the names below. Knows no model.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from tarsdb.kernels.cpu.barrier import BARRIER_BYTES, fetch_add, wait_for_all
from tarsdb.kernels.cpu.epilogue import GATED, LINEAR, RESIDUAL
from tarsdb.kernels.cpu.gemm import make_gemm
from tarsdb.kernels.cpu.gemm_forms import form_of
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import read_int, read_long, read_real
from tarsdb.kernels.cpu.paged_attention import QUERIES, make_attend, piece
from tarsdb.kernels.cpu.rows import (
    add_scaled_by,
    narrow,
    norm_factor,
    rotate,
    scale,
    scale_by,
    scatter,
    scatter_narrow,
    soft_cap,
    widen_scaled,
)

SIGNATURE = types.void(*[types.int64] * 4)
SIGNATURES = {"step": SIGNATURE}

# The model: sizes, then the addresses of its arrays; floats are float32 at REALS.
MODEL = ("layers", "hidden", "heads", "kv_heads", "head_dim", "width", "intermediate", "vocabulary",
         "gate", "halved_words", "words", "norm", "head", "reals", "layer_table")  # fmt: skip
(LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WIDTH, INTERMEDIATE, VOCABULARY, GATE, HALVED_WORDS,
 WORDS, NORM, HEAD, REALS, LAYER_TABLE) = range(len(MODEL))  # fmt: skip
REAL = ("epsilon", "embedding_scale", "query_scale", "score_cap", "logit_cap")
EPSILON, EMBEDDING_SCALE, QUERY_SCALE, SCORE_CAP, LOGIT_CAP = range(len(REAL))
# A layer; 0 is the address of what it does not have.
LAYER = ("attention_norm", "qkv", "qkv_bias", "query_norm", "key_norm", "context", "context_bias",
         "context_norm", "mlp_norm", "gate_up", "gate_up_bias", "down", "down_bias", "down_norm",
         "window", "rope")  # fmt: skip
(ATTENTION_NORM, QKV, QKV_BIAS, QUERY_NORM, KEY_NORM, CONTEXT, CONTEXT_BIAS, CONTEXT_NORM, MLP_NORM,
 GATE_UP, GATE_UP_BIAS, DOWN, DOWN_BIAS, DOWN_NORM, WINDOW, ROPE) = range(len(LAYER))  # fmt: skip
# A step: its rows, the cache, and memory for what is computed.
STEP = ("rows", "sequences", "wanted_rows", "table_blocks", "cache_groups", "tokens", "offsets",
        "positions", "tables", "slots", "wanted", "angles", "keys", "values", "stream", "normed",
        "qkv", "context", "activations", "logits", "scratch", "scratch_bytes", "sync",
        "yielding", "runs", "run_table", "adapter_table", "unfused", "lowered",
        "lowered_bytes", "marks")  # fmt: skip
(ROWS, SEQUENCES, WANTED_ROWS, TABLE_BLOCKS, CACHE_GROUPS, TOKENS, OFFSETS, POSITIONS, TABLES,
 SLOTS, WANTED, ANGLES, KEYS, VALUES, STREAM, NORMED, QKV_ROWS, CONTEXT_ROWS, ACTIVATIONS, LOGITS,
 SCRATCH, SCRATCH_BYTES, SYNC, YIELDING, RUNS, RUN_TABLE, ADAPTER_TABLE, UNFUSED, LOWERED,
 LOWERED_BYTES, MARKS) = range(len(STEP))  # fmt: skip
# A run of rows that one adapter adds to: first row, rows, adapter. An adapter, layer by layer and
# matrix by matrix: addresses of both its packed float32 matrices (0: none), and its rank.
RUN = 3
ADAPTED = ("qkv", "context", "gate_up", "down")
ADAPTED_QKV, ADAPTED_CONTEXT, ADAPTED_GATE_UP, ADAPTED_DOWN = range(len(ADAPTED))

_ONE = np.float32(1.0)
# Each function that is called is optimised once more with each of its callers: few are.
_inlined = linked(error_model="numpy", inline="always")


def cache_bytes(kind: str) -> int:
    """Return the bytes of an element of the KV cache beside a kind of weights."""
    return 4 if kind == "f32" else 2


def sync_bytes(layers: int) -> int:
    """Return the bytes of zeros that the threads of a step meet at."""
    return BARRIER_BYTES + 64 * layers


@_inlined
def _embed(part, parts, model, batch):  # type: ignore[no-untyped-def]
    """``stream = words[token] * scale``, row by row."""
    count, hidden = read_long(batch, ROWS), read_long(model, HIDDEN)
    tokens, stream, words = (
        read_long(batch, TOKENS), read_long(batch, STREAM), read_long(model, WORDS)
    )  # fmt: skip
    factor = read_real(read_long(model, REALS), EMBEDDING_SCALE)
    for row in range(count * part // parts, count * (part + 1) // parts):
        place, token = stream + 4 * row * hidden, read_int(tokens, row)
        if read_long(model, HALVED_WORDS):
            widen_scaled(place, words + 2 * token * hidden, factor, hidden)
        else:
            scale(place, words + 4 * token * hidden, factor, hidden)


@_inlined
def _normalise(part, parts, model, batch, weight, out, wanted):  # type: ignore[no-untyped-def]
    """``out = norm(stream)`` of all rows, or of the wanted ones."""
    hidden, stream = read_long(model, HIDDEN), read_long(batch, STREAM)
    epsilon = read_real(read_long(model, REALS), EPSILON)
    count = read_long(batch, WANTED_ROWS) if wanted else read_long(batch, ROWS)
    for row in range(count * part // parts, count * (part + 1) // parts):
        source = stream + 4 * hidden * (read_int(wanted, row) if wanted else row)
        factor = norm_factor(source, hidden, epsilon)
        scale_by(out + 4 * row * hidden, source, weight, factor, hidden)


@_inlined
def _add_normalised(part, parts, model, batch, update, weight):  # type: ignore[no-untyped-def]
    """``stream += norm(update)``."""
    hidden, count, stream = (
        read_long(model, HIDDEN), read_long(batch, ROWS), read_long(batch, STREAM)
    )  # fmt: skip
    epsilon = read_real(read_long(model, REALS), EPSILON)
    for row in range(count * part // parts, count * (part + 1) // parts):
        source, place = update + 4 * row * hidden, stream + 4 * row * hidden
        factor = norm_factor(source, hidden, epsilon)
        add_scaled_by(place, source, weight, place, factor, hidden)


def _make_store_heads(size: int) -> Any:
    """Return what fills the cache, whose elements take ``size`` bytes: float32 or bfloat16."""
    is_narrow, line = size == 2, 16 * size

    @linked(error_model="numpy")
    def store_heads(part, parts, model, layer, batch, number):  # type: ignore[no-untyped-def]
        """Normalise and turn queries and keys where they lie; write the cache."""
        heads, kv_heads, head_dim, width = (
            read_long(model, HEADS), read_long(model, KV_HEADS), read_long(model, HEAD_DIM),
            read_long(model, WIDTH),
        )  # fmt: skip
        count, groups = read_long(batch, ROWS), read_long(batch, CACHE_GROUPS)
        slots, qkv = read_long(batch, SLOTS), read_long(batch, QKV_ROWS)
        epsilon = read_real(read_long(model, REALS), EPSILON)
        angles = read_long(batch, ANGLES) + 4 * head_dim * count * read_long(layer, ROPE)
        all_heads = heads + 2 * kv_heads
        units = count * all_heads
        for unit in range(units * part // parts, units * (part + 1) // parts):
            row, head = unit // all_heads, unit % all_heads
            place = qkv + 4 * head_dim * unit
            if head < heads + kv_heads:
                weight = read_long(layer, QUERY_NORM if head < heads else KEY_NORM)
                if weight:
                    factor = norm_factor(place, head_dim, epsilon)
                    scale_by(place, place, weight, factor, head_dim)
                rotate(place, angles + 4 * head_dim * row, head_dim // 2)
            if head >= heads:
                slot = read_long(slots, row)
                own = head - heads if head < heads + kv_heads else head - heads - kv_heads
                block = piece(number * groups * kv_heads + own, kv_heads, slot // 16)
                column = read_long(batch, KEYS) + line * head_dim * block + size * (slot % 16)
                target = read_long(batch, VALUES) + width * (line * block + size * (slot % 16))
                if is_narrow and head < heads + kv_heads:
                    scatter_narrow(column, place, head_dim)
                elif is_narrow:
                    narrow(target, place, head_dim)
                elif head < heads + kv_heads:
                    scatter(column, place, head_dim)
                else:
                    scale(target, place, _ONE, head_dim)

    return store_heads


def _make_attention(variant: str, size: int) -> Any:
    attend = make_attend(variant, size)
    most, line = QUERIES, 16 * size

    @_inlined
    def unit(model, layer, batch, number, sequence, chunk, head, scratch):  # type: ignore[no-untyped-def]
        """Attend with one head of keys for some rows of a sequence."""
        heads, kv_heads, head_dim, width = (
            read_long(model, HEADS), read_long(model, KV_HEADS), read_long(model, HEAD_DIM),
            read_long(model, WIDTH),
        )  # fmt: skip
        group = heads // kv_heads
        offsets = read_long(batch, OFFSETS)
        start, stop = read_int(offsets, sequence), read_int(offsets, sequence + 1)
        first = start + chunk * most
        count = min(most, stop - first)
        position = read_int(read_long(batch, POSITIONS), sequence) + first - start
        reals = read_long(model, REALS)
        scaling, cap = read_real(reals, QUERY_SCALE), read_real(reals, SCORE_CAP)
        table = read_long(batch, TABLES) + 4 * sequence * read_long(batch, TABLE_BLOCKS)
        blocks = piece(number * read_long(batch, CACHE_GROUPS) * kv_heads + head, kv_heads, 0)
        keys = read_long(batch, KEYS) + line * head_dim * blocks
        values = read_long(batch, VALUES) + line * width * blocks
        stride, out_stride = 4 * head_dim * (heads + 2 * kv_heads), 4 * head_dim * heads
        queries = read_long(batch, QKV_ROWS) + first * stride
        out = read_long(batch, CONTEXT_ROWS) + first * out_stride
        # of one row, the heads beside each other; else, head by head, the rows
        step, taken = (0, most) if count == 1 else (1, 1)
        for at in range(0, group, taken):
            own = 4 * head_dim * (head * group + at)
            attend(queries + own, stride if step else 4 * head_dim,
                   count if step else min(most, group - at), position, step, table, keys, values,
                   kv_heads, head_dim, width,
                   read_long(layer, WINDOW), scaling, cap, out + own,
                   out_stride if step else 4 * head_dim, scratch)  # fmt: skip

    @_inlined
    def attention(model, layer, batch, number, scratch):  # type: ignore[no-untyped-def]
        """Attend with one layer: threads take heads of keys and chunks of rows in turn."""
        kv_heads, offsets = read_long(model, KV_HEADS), read_long(batch, OFFSETS)
        counter = read_long(batch, SYNC) + BARRIER_BYTES + 64 * number
        taken, passed, sequence, chunks = fetch_add(counter, 1), 0, 0, 0
        while sequence < read_long(batch, SEQUENCES):
            own = read_int(offsets, sequence + 1) - read_int(offsets, sequence)
            chunks = (own + most - 1) // most
            if taken - passed >= chunks * kv_heads:
                passed += chunks * kv_heads
                sequence += 1
                continue
            chunk, head = (taken - passed) // kv_heads, (taken - passed) % kv_heads
            unit(model, layer, batch, number, sequence, chunk, head, scratch)
            taken = fetch_add(counter, 1)

    return attention


def _make_linear(kind: str, variant: str) -> Any:
    product, form = make_gemm(variant, kind), form_of(kind, variant)
    padding, per_line, line, tail = form.padding, form.per_line, form.line_bytes, form.tail_bytes

    @_inlined
    def linear(part, parts, a, depth, count, weights, columns, code, bias, out, scratch):  # type: ignore[no-untyped-def] # fmt: skip
        """Make a part's columns of a product; the residual is what ``out`` holds."""
        tiles = (columns + 15) // 16
        first, stop = tiles * part // parts, tiles * (part + 1) // parts
        paired = 2 if code >= GATED else 1
        tile = (depth + padding - 1) // padding * padding // per_line * line + tail
        place, own = out + 64 * first, min(columns, 16 * stop) - 16 * first
        if own > 0:
            product(a, 4 * depth, count, weights + tile * paired * first, depth, own, code,
                    np.int64(bias + 64 * paired * first if bias else 0), place, place, 4 * columns,
                    scratch)  # fmt: skip

    return linear


@_inlined
def _adapt_nothing(  # type: ignore[no-untyped-def]
    part, parts, model, batch, number, matrix, a, depth, columns, width, out, stride, scratch
):
    """Take the place of what adds adapters to a product, where there are none."""


def _make_gate(linear: Any) -> Any:
    @_inlined
    def gate(part, parts, model, layer, batch, number, out, scratch):  # type: ignore[no-untyped-def]
        """Make a part of ``activation(gate) * up``."""
        linear(part, parts, read_long(batch, NORMED), read_long(model, HIDDEN),
               read_long(batch, ROWS), read_long(layer, GATE_UP), read_long(model, INTERMEDIATE),
               read_long(model, GATE), read_long(layer, GATE_UP_BIAS), out, scratch)  # fmt: skip

    return gate


def _make_attention_part(linear: Any, form: str, size: int, adapt: Any) -> Any:
    store_heads, attention = _make_store_heads(size), _make_attention(form, size)

    @_inlined
    def attention_part(part, parts, model, layer, batch, number, scratch):  # type: ignore[no-untyped-def]
        sync, yielding, count = (
            read_long(batch, SYNC), read_long(batch, YIELDING), read_long(batch, ROWS)
        )  # fmt: skip
        hidden, normed, stream = (
            read_long(model, HIDDEN), read_long(batch, NORMED), read_long(batch, STREAM)
        )  # fmt: skip
        queries = read_long(model, HEADS) * read_long(model, HEAD_DIM)
        both = 2 * read_long(model, KV_HEADS) * read_long(model, HEAD_DIM)
        _normalise(part, parts, model, batch, read_long(layer, ATTENTION_NORM), normed, 0)
        wait_for_all(sync, parts, yielding)
        # stage: norm
        linear(part, parts, normed, hidden, count, read_long(layer, QKV), queries + both,
               LINEAR, read_long(layer, QKV_BIAS), read_long(batch, QKV_ROWS),
               scratch)  # fmt: skip
        adapt(part, parts, model, batch, number, ADAPTED_QKV, normed, hidden, queries + both,
              16, read_long(batch, QKV_ROWS), 4 * (queries + both), scratch)  # fmt: skip
        wait_for_all(sync, parts, yielding)
        # stage: qkv
        store_heads(part, parts, model, layer, batch, number)
        wait_for_all(sync, parts, yielding)
        # stage: cache
        attention(model, layer, batch, number, scratch)
        wait_for_all(sync, parts, yielding)
        # stage: attention
        after = read_long(layer, CONTEXT_NORM)
        linear(part, parts, read_long(batch, CONTEXT_ROWS), queries, count,
               read_long(layer, CONTEXT), hidden, LINEAR if after else RESIDUAL,
               read_long(layer, CONTEXT_BIAS), normed if after else stream, scratch)  # fmt: skip
        adapt(part, parts, model, batch, number, ADAPTED_CONTEXT,
              read_long(batch, CONTEXT_ROWS), queries, hidden, 16,
              normed if after else stream, 4 * hidden, scratch)  # fmt: skip
        wait_for_all(sync, parts, yielding)
        # stage: context
        if after:
            _add_normalised(part, parts, model, batch, normed, after)
            wait_for_all(sync, parts, yielding)
            # stage: norm

    return attention_part


def _make_mlp_part(linear: Any, adapt: Any, gate: Any) -> Any:
    @_inlined
    def mlp_part(part, parts, model, layer, batch, number, scratch):  # type: ignore[no-untyped-def]
        sync, yielding, count = (
            read_long(batch, SYNC), read_long(batch, YIELDING), read_long(batch, ROWS)
        )  # fmt: skip
        hidden, normed, stream = (
            read_long(model, HIDDEN), read_long(batch, NORMED), read_long(batch, STREAM)
        )  # fmt: skip
        inner, activations = read_long(model, INTERMEDIATE), read_long(batch, ACTIVATIONS)
        _normalise(part, parts, model, batch, read_long(layer, MLP_NORM), normed, 0)
        wait_for_all(sync, parts, yielding)
        # stage: norm
        gate(part, parts, model, layer, batch, number, activations, scratch)
        wait_for_all(sync, parts, yielding)
        # stage: gate and up
        after = read_long(layer, DOWN_NORM)
        linear(part, parts, activations, inner, count, read_long(layer, DOWN), hidden,
               LINEAR if after else RESIDUAL, read_long(layer, DOWN_BIAS),
               normed if after else stream, scratch)  # fmt: skip
        adapt(part, parts, model, batch, number, ADAPTED_DOWN, activations, inner, hidden, 16,
              normed if after else stream, 4 * hidden, scratch)  # fmt: skip
        wait_for_all(sync, parts, yielding)
        # stage: down
        if after:
            _add_normalised(part, parts, model, batch, normed, after)
            wait_for_all(sync, parts, yielding)
            # stage: norm

    return mlp_part


def make_kernels(variant: str) -> dict[str, Any]:
    """Return the kernels of SIGNATURES, not yet compiled.

    ``variant``: KIND/VARIANT of the products, such as 'f32/avx2'.
    """
    return {"step": make_step(variant, _adapt_nothing, _make_gate)}


def make_step(variant: str, adapt: Any, make_gate: Any) -> Any:
    """Return the step, not yet compiled.

    Parameters
    ----------
    variant : str
    adapt : callable
        Adds to a part's columns of a product what adapters say.
    make_gate : callable
        Takes the product of a part's columns; returns what makes a part of activation(gate) * up.
    """
    kind, form = variant.split("/")
    linear = _make_linear(kind, form)
    attention_part = _make_attention_part(linear, form, cache_bytes(kind), adapt)
    mlp_part = _make_mlp_part(linear, adapt, make_gate(linear))

    @njit(nogil=True, error_model="numpy")
    def step(part, parts, model, batch):  # type: ignore[no-untyped-def]
        sync, yielding = read_long(batch, SYNC), read_long(batch, YIELDING)
        scratch = read_long(batch, SCRATCH) + part * read_long(batch, SCRATCH_BYTES)
        wanted, normed = read_long(batch, WANTED_ROWS), read_long(batch, NORMED)
        hidden, vocabulary = read_long(model, HIDDEN), read_long(model, VOCABULARY)
        # stage outside layers: call
        _embed(part, parts, model, batch)
        wait_for_all(sync, parts, yielding)
        # stage outside layers: embedding
        for number in range(read_long(model, LAYERS)):
            # layer
            layer = read_long(model, LAYER_TABLE) + 8 * len(LAYER) * number
            attention_part(part, parts, model, layer, batch, number, scratch)
            mlp_part(part, parts, model, layer, batch, number, scratch)
        _normalise(part, parts, model, batch, read_long(model, NORM), normed,
                   read_long(batch, WANTED))  # fmt: skip
        wait_for_all(sync, parts, yielding)
        # stage outside layers: last norm
        logits = read_long(batch, LOGITS)
        linear(part, parts, normed, hidden, wanted, read_long(model, HEAD), vocabulary,
               LINEAR, 0, logits, scratch)  # fmt: skip
        # stage outside layers: logits
        cap = read_real(read_long(model, REALS), LOGIT_CAP)
        if cap != np.float32(0.0):
            wait_for_all(sync, parts, yielding)
            for row in range(wanted * part // parts, wanted * (part + 1) // parts):
                place = logits + 4 * row * vocabulary
                soft_cap(place, place, _ONE, cap, vocabulary)

    return step
