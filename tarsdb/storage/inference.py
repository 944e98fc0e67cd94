"""Results of models and functions by what they were computed from, kept up to a limit.

An entry is named by digests of everything it depends on: the input, the model's weights or the
function's module, and the way it was computed (task, numeric mode, options). So one found in any
snapshot is right, and losing one loses nothing. Entries go into the newest *generation*; one that
is read in an old generation is written into the newest again, and space is made by removing from
the oldest. That is least recently used, about, without a write for each read.

Keys in ``inference``: generation u32, input 16 bytes, weights 16, way 16, and 16 more for every
further input of a task that reads several. ``meta`` has limit, fill of the newest generation and an
erase mark under ``inference``. A file of an older release has no such database until a process that
may write opens it. Knows no model and no text: digests come from :func:`digest`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from tarsdb.errors import CorruptionError, Error
from tarsdb.records import dataclass
from tarsdb.schema import FunctionDef, ModelDef
from tarsdb.storage import failpoints
from tarsdb.storage.catalog import read_catalog
from tarsdb.storage.transaction import ReadTxn, WriteTxn
from tarsdb.storage.values import ValueType, pack, unpack

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

DATABASE = "inference"
DEFAULT_LIMIT = 256 << 20
SMALLEST_LIMIT = 1 << 20
GENERATIONS = 8
"""A generation is full at this part of the limit; entries of the older half are written again."""
DIGEST = 16
_STATE = b"inference"
_GENERATION = 4
_INPUT = slice(_GENERATION, _GENERATION + DIGEST)
_WEIGHTS = slice(_INPUT.stop, _INPUT.stop + DIGEST)
_MORE = _WEIGHTS.stop + DIGEST
_LOOKED_AT = 8 * GENERATIONS
"""There are a few more than GENERATIONS while the limit changes; never more for a damaged key."""
_BATCH = 500
"""Entries removed in one transaction."""


@dataclass(frozen=True, slots=True)
class State:
    """What is known of the whole.

    Attributes
    ----------
    limit : int
        Bytes of the file the entries may take.
    filled : int
        Bytes written into the newest generation.
    mark : str
        Another one after every erasure: what was computed before it must not be written after it.
    """

    limit: int = DEFAULT_LIMIT
    filled: int = 0
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A result to be written.

    Attributes
    ----------
    name : bytes
        Of :func:`entry_name`.
    value : bytes
    mark : str
        The erase mark of the snapshot it was computed from, or found in.
    generation : int
        Where it was found, to be moved; -1 when it is new.
    """

    name: bytes
    value: bytes
    mark: str
    generation: int = -1


@dataclass(frozen=True, slots=True)
class Found:
    """A stored result; ``is_old`` says that it should be written again to stay."""

    value: bytes
    generation: int
    is_old: bool


def digest(data: bytes) -> bytes:
    """Return the 16 bytes that stand for an input, weights or a way: the start of its SHA-256."""
    return hashlib.sha256(data).digest()[:DIGEST]


def text_digest(text: str) -> bytes:
    """Return the digest of a text."""
    return digest(text.encode("utf-8", "surrogatepass"))


def entry_name(inputs: Sequence[bytes], weights: bytes, way: bytes) -> bytes:
    """Return the name of a result, of digests."""
    return b"".join((inputs[0], weights, way, *inputs[1:]))


# --- reading ---


def read_state(txn: ReadTxn) -> State:
    """Return the state; what cannot be read is as at the beginning."""
    raw = txn.get("meta", _STATE)
    if raw is None:
        return State()
    try:
        payload, _, _ = unpack(ValueType.META, _STATE, raw, "inference cache: state")
        return State(**json.loads(bytes(payload)))
    except (CorruptionError, ValueError, TypeError):
        return State(mark="damaged")


def find(txn: ReadTxn, names: Sequence[bytes]) -> list[Found | None]:
    """Return the results stored under names; a damaged one counts as missing."""
    found: list[Found | None] = [None] * len(names)
    first, last = _generations(txn)
    missing: Sequence[int] = range(len(names))
    for generation in range(last, max(first, last - _LOOKED_AT) - 1, -1):
        prefix = generation.to_bytes(_GENERATION, "big")
        is_old = generation <= last - GENERATIONS // 2
        left = []
        for at in missing:
            value = _read(txn, prefix + names[at])
            if value is None:
                left.append(at)
            else:
                found[at] = Found(value, generation, is_old)
        missing = left
        if not missing:
            break
    return found


def _read(txn: ReadTxn, key: bytes) -> bytes | None:
    raw = txn.get(DATABASE, key)
    if raw is None:
        return None
    try:
        return bytes(unpack(ValueType.INFERENCE, key, raw)[0])
    except CorruptionError:
        return None


def _generations(txn: ReadTxn) -> tuple[int, int]:
    """Return the oldest and the newest generation; the first above the last where there is none."""
    if not txn.has(DATABASE):
        return 1, 0
    oldest = next(txn.range(DATABASE, b"", None), None)
    newest = txn.last(DATABASE, b"", b"\xff" * (_GENERATION + 1))
    if oldest is None or newest is None:
        return 1, 0
    return _generation(oldest[0]), _generation(newest[0])


def _generation(key: bytes) -> int:
    return int.from_bytes(key[:_GENERATION], "big")


def size_bytes(txn: ReadTxn) -> int:
    """Return the bytes of the file that the entries take."""
    if not txn.has(DATABASE):
        return 0
    stat = txn.stat(DATABASE)
    return stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])


def count(txn: ReadTxn) -> int:
    """Return how many results are stored."""
    return txn.count(DATABASE) if txn.has(DATABASE) else 0


# --- writing ---


def write(env: Environment, entries: Sequence[Entry]) -> int:
    """Store results and make room for them; return how many were stored.

    Left out: what was computed before an erasure, and results of weights or modules that are gone.
    """

    def work(txn: WriteTxn) -> int:
        if not txn.has(DATABASE):
            return 0
        state = _settled(txn)
        live = live_weights(txn, env)
        kept = [e for e in entries if e.mark == state.mark and e.name[DIGEST : 2 * DIGEST] in live]
        newest = max(_generations(txn)[1], 0)
        if state.filled >= _limit(env, state) // GENERATIONS:
            newest, state = newest + 1, replace(state, filled=0)
        prefix = newest.to_bytes(_GENERATION, "big")
        for entry in kept:
            if entry.generation >= 0 and entry.generation != newest:
                old = entry.generation.to_bytes(_GENERATION, "big") + entry.name
                txn.delete(DATABASE, old)
            key = prefix + entry.name
            txn.put(DATABASE, key, pack(ValueType.INFERENCE, key, entry.value))
        filled = state.filled + sum(len(entry.value) for entry in kept)
        _put_state(txn, replace(state, filled=filled))
        _make_room(txn, _limit(env, state))
        failpoints.hit("inference.before_commit")
        return len(kept)

    return env.stage(work)


def _settled(txn: WriteTxn) -> State:
    """Return the state; one that does not read is written anew, with a mark nobody has."""
    state = read_state(txn)
    if state.mark == "damaged":
        state = State(mark=secrets.token_hex(8))
        _put_state(txn, state)
    return state


def _put_state(txn: WriteTxn, state: State) -> None:
    payload = json.dumps(asdict(state), separators=(",", ":")).encode()
    txn.put("meta", _STATE, pack(ValueType.META, _STATE, payload))


def _limit(env: Environment, state: State) -> int:
    """Return the limit; of a file with a quota, results take an eighth of that at most."""
    quota = env.options.max_size_bytes
    return state.limit if quota is None else min(state.limit, quota // 8)


def _make_room(txn: WriteTxn, limit: int) -> bool:
    """Remove from the oldest generation until the limit is kept; False when there is more to do."""
    for _ in range(_BATCH):
        if size_bytes(txn) <= limit:
            return True
        oldest = next(txn.range(DATABASE, b"", None), None)
        if oldest is None:
            return True
        txn.delete(DATABASE, oldest[0])
    return size_bytes(txn) <= limit


def set_limit(env: Environment, limit: int) -> None:
    """Set how many bytes of the file the results may take, and keep to it."""

    def work(txn: WriteTxn) -> bool:
        state = replace(_settled(txn), limit=limit)
        _put_state(txn, state)
        return not txn.has(DATABASE) or _make_room(txn, _limit(env, state))

    while not env.stage(work, frees_space=True):
        pass


def forget_input(env: Environment, text: str) -> int:
    """Remove every result of a text, of all models; return how many there were.

    What other processes computed from it before and have not written yet will not be written.
    """
    env.stage(lambda txn: _put_state(txn, replace(_settled(txn), mark=secrets.token_hex(8))))
    wanted = text_digest(text)
    return _remove_where(env, lambda key: wanted in _inputs(key))


def forget_dead(env: Environment) -> int:
    """Remove the results of weights and modules that the catalog has not; return how many."""
    with env.read() as txn:
        live = live_weights(txn, env)
    return _remove_where(env, lambda key: key[_WEIGHTS] not in live)


def forget_damaged(env: Environment) -> int:
    """Remove entries whose checksum does not match; return how many."""
    with env.read() as txn:
        doomed = set(_damaged(txn))
    return _remove_where(env, doomed.__contains__) if doomed else 0


def _inputs(key: bytes) -> list[bytes]:
    return [key[_INPUT], *(key[at : at + DIGEST] for at in range(_MORE, len(key), DIGEST))]


def _remove_where(env: Environment, is_doomed: Callable[[bytes], bool]) -> int:
    """Remove entries by key, found without a lock, in transactions of bounded size."""
    with env.read() as txn:
        doomed = [key for key in _keys(txn) if is_doomed(key)]
    gone = 0
    for start in range(0, len(doomed), _BATCH):
        batch = doomed[start : start + _BATCH]
        gone += env.stage(functools.partial(_delete, doomed=batch), frees_space=True)
    return gone


def _delete(txn: WriteTxn, doomed: Sequence[bytes]) -> int:
    return sum(txn.delete(DATABASE, key) for key in doomed)


def _keys(txn: ReadTxn) -> Iterator[bytes]:
    if txn.has(DATABASE):
        for block in txn.keys(DATABASE, b"", b"\xff" * (_GENERATION + 1)):
            yield from block


def function_digest(function: FunctionDef) -> bytes:
    """Return what stands for a function's module where a model has the digest of its weights."""
    return digest(b"module " + function.digest.encode())


def live_weights(txn: ReadTxn, env: Environment) -> Collection[bytes]:
    """Return the digests of the weights of all model versions in the catalog.

    Beside them are those of the modules of functions whose results are kept.
    """
    catalog = read_catalog(txn, env.caches)
    models: list[ModelDef] = catalog.models()
    weights = {version.weights_digest for model in models for version in model.versions}
    return weights | {function_digest(f) for f in catalog.functions() if f.is_cached}


# --- checking ---


def check(txn: ReadTxn) -> Iterator[str]:
    """Yield what is wrong, every checksum read."""
    damaged = sum(1 for _ in _damaged(txn))
    if damaged:
        yield (
            f"inference cache: {damaged} of {count(txn)} results are damaged "
            "(computed again when next asked for; VACUUM removes them)"
        )
    if read_state(txn).mark == "damaged":
        yield "inference cache: its state is damaged (made anew when next written)"


def _damaged(txn: ReadTxn) -> Iterator[bytes]:
    for key in _keys(txn):
        raw = txn.get(DATABASE, key)
        try:
            if raw is not None:
                unpack(ValueType.INFERENCE, key, raw)
        except Error:
            yield key
