"""``tarsdb profile-model``: where the time of a model goes, by stage or by operation.

Stages are those of statements, run through SQL. Operations are the functions that compute, in a run
of the model alone: with ``TARSDB_ISA=portable`` NumPy's, one by one; otherwise a compiled kernel is
one of them. What it does inside is shown by layer, by a variant of it that looks at the clock.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tarsdb.cli import render
from tarsdb.cli.running import interruptibly
from tarsdb.database import Connection, connect
from tarsdb.engine.context import Context
from tarsdb.engine.inference import model_device
from tarsdb.errors import CatalogError, DataError, NotSupportedError, OperationalError
from tarsdb.kernels import profiling

OPERATIONS = ("operation", "calls", "ms", "share")
_SHOWN = 16
HEADER = ("stage", "ms", "share", "us_per_token", "note")
TEXTS = (
    "How do I parse a date from a string?",
    "A read transaction shows one commit for as long as it lives. It never blocks a writer, and a "
    "writer never blocks it.",
    "The file does not shrink; freed pages are used again.",
)
_CALLS = {
    "embed": "embed({model}, t)",
    "classify": "classify({model}, t)",
    "rerank": "rerank({model}, t, t)",
    "generate": "generate({model}, t, max_tokens => {max_tokens})",
}
_Row = tuple[Any, ...]
_Runs = Callable[[int], None]


def profile_model(arguments: argparse.Namespace) -> int:
    """Print what stages, operations or layers of a warm run take; the file is only read."""
    if not os.path.exists(arguments.file):
        raise OperationalError(f"{arguments.file!r} does not exist", hint="check the path")
    for name in ("repeat", "max_tokens"):
        if getattr(arguments, name) < 1:
            option = name.replace("_", "-")
            raise DataError(f"--{option} must be at least 1, not {getattr(arguments, name)}")
    if arguments.layers and arguments.operations:
        raise DataError("--layers and --operations are two ways to look at a run; give one")
    work = _layers if arguments.layers else _operations if arguments.operations else _stage_rows
    with connect(arguments.file, read_only=True) as db:
        header, *rows = interruptibly(db, lambda: list(work(db, arguments)))
    render.WRITERS[arguments.format](header, rows, sys.stdout)
    return 0


def _stage_rows(db: Connection, arguments: argparse.Namespace) -> Iterator[_Row]:
    yield HEADER
    texts = arguments.text or list(TEXTS)
    name, task = _model(db, arguments.model)
    quoted = "'" + name.replace("'", "''") + "'"
    call = _CALLS[task].format(model=quoted, max_tokens=arguments.max_tokens)
    values = ", ".join(["(?)"] * len(texts))
    query = f"SELECT {call} AS answer FROM (VALUES {values}) AS v(t)"
    db.execute("SET inference_cache = off")
    first, _ = _run(db, query, texts)
    yield ("first run", round(first * 1000, 3), None, None, "loads the model, plans the statement")
    _compile()
    _run(db, query, texts)
    runs = [_run(db, query, texts) for _ in range(arguments.repeat)]
    seconds, done = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
    yield from _stages(seconds, done)
    yield _memory(db, name)


def _memory(db: Connection, name: str) -> _Row:
    """Return what weights and activations of a model take, as the runs left them."""

    def work(context: Context) -> int:
        model = context.catalog.model(name)
        if model is None:
            raise CatalogError(f"model {name!r} was dropped")
        device = model_device.choose(context.engines.settings, [model])
        loaded = context.engines.models.load(context, model, device)
        runs = getattr(loaded, "decoder", getattr(loaded, "encoder", loaded))
        return int(runs.workspace_bytes)

    activations = db._require_session().inspect(work)
    query = "SELECT bytes_loaded FROM tars_models WHERE name = ?"
    ((weights,),) = db.execute(query, (name,)).fetchall()
    return ("memory", None, None, None, f"{weights:,} bytes of weights, {activations:,} to compute")


def _model(db: Connection, wanted: str) -> tuple[str, str]:
    """Return a model's name and task."""
    models = dict(db.execute("SELECT name, task FROM tars_models").fetchall())
    known = {name.lower(): (name, task) for name, task in models.items()}
    if wanted.lower() not in known:
        raise CatalogError(
            f"model {wanted!r} does not exist", hint=f"models: {', '.join(models) or 'none'}"
        )
    name, task = known[wanted.lower()]
    if task not in _CALLS:
        raise NotSupportedError(f"model {name} does {task}, which cannot be profiled")
    return name, task


def _operations(db: Connection, arguments: argparse.Namespace) -> Iterator[_Row]:
    """Yield the functions of model and kernels that took longest themselves, texts one by one."""
    profile = cProfile.Profile()
    _alone(db, arguments, lambda runs: profile.runcall(runs, arguments.repeat))
    yield OPERATIONS
    yield from _slowest(pstats.Stats(profile))


def _layers(db: Connection, arguments: argparse.Namespace) -> Iterator[_Row]:
    """Yield what each layer's stages took, and what the calls took with and without marks."""
    found: list[profiling.StageTimes] = []

    def measure(runs: _Runs) -> None:
        for marked, repeat in ((True, 1), (True, arguments.repeat), (False, arguments.repeat)):
            with profiling.timing(marked) as times:  # the first compiles
                runs(repeat)
            found.append(times)

    _alone(db, arguments, measure)
    _, marked, usual = found
    if not marked.calls:
        raise NotSupportedError(
            f"model {arguments.model} is not computed by compiled calls here",
            hint="--operations shows what computes instead",
        )
    yield from _layer_rows(marked, usual, 1000 / arguments.repeat)


def _layer_rows(
    marked: profiling.StageTimes, usual: profiling.StageTimes, scale: float
) -> Iterator[_Row]:
    """Yield a header and rows in ms of a run: ``scale`` times the seconds of all."""
    outside, layers = marked.found()
    total = float(outside.sum() + layers.sum())

    def row(name: str, parts: Iterable[float | None], seconds: float) -> _Row:
        shown = (None if part is None else round(scale * part, 3) for part in parts)
        return (name, *shown, round(scale * seconds, 3), round(seconds / total, 3))

    nothing = [None] * len(marked.stages)
    yield ("layer", *marked.stages, "all", "share")
    for number, layer in enumerate(layers):
        yield row(str(number), layer.tolist(), float(layer.sum()))
    for stage, seconds in list(zip(marked.outside, outside.tolist(), strict=True))[1:]:
        yield row(stage, nothing, seconds)
    yield row("sum", layers.sum(axis=0).tolist(), total)
    yield row("calls", nothing, marked.seconds)
    yield row("calls without marks", nothing, usual.seconds)


def _alone(
    db: Connection, arguments: argparse.Namespace, measure: Callable[[_Runs], object]
) -> None:
    """Call ``measure`` with what runs the model over all texts some times, on this thread."""
    name, task = _model(db, arguments.model)

    def work(context: Context) -> None:
        model = context.catalog.model(name)
        if model is None:
            raise CatalogError(f"model {name!r} was dropped")
        device = model_device.choose(context.engines.settings, [model])
        loaded = context.engines.models.load(context, model, device)
        call = _direct(loaded, task, arguments.max_tokens)

        def runs(repeat: int) -> None:
            for text in (arguments.text or TEXTS) * repeat:
                context.engines.interrupt.check()
                call(text)

        _compile()
        runs(1)
        measure(runs)

    db._require_session().inspect(work)


def _direct(loaded: Any, task: str, max_tokens: int) -> Callable[[str], Any]:
    """Return what runs a loaded model on one text, on this thread."""
    if task == "embed":
        return lambda text: loaded.encode([text], threads=1)
    if task == "generate":
        from tarsdb.model_ops.generation.generation_options import GenerationOptions

        options = GenerationOptions.from_mapping({"max_tokens": max_tokens})
        return lambda text: loaded.generate([text], options)
    return lambda text: loaded.logits([(text, text) if task == "rerank" else text], threads=1)


def _slowest(stats: pstats.Stats) -> Iterator[_Row]:
    found: list[tuple[float, int, str]] = []
    # what pstats keeps for each function: calls, all calls, own time, time with callees, callers
    entries: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = stats.stats  # type: ignore[attr-defined]
    for (path, _, function), (_, calls, own, _, _) in entries.items():
        place = os.path.splitext(os.path.basename(path))[0]
        is_builtin = path == "~"
        found.append((own, calls, function if is_builtin else f"{place}.{function}"))
    total = sum(own for own, _, _ in found)
    found.sort(reverse=True)
    for own, calls, function in found[:_SHOWN]:
        yield (function, calls, round(own * 1000, 3), round(own / total, 3))
    rest = sum(own for own, _, _ in found[_SHOWN:])
    yield ("others", None, round(rest * 1000, 3), round(rest / total, 3))
    yield ("all", None, round(total * 1000, 3), 1.0)


def _compile() -> None:
    """Have the kernels ready: what is measured is the running."""
    from tarsdb.kernels import decoder, encoder

    for kernels in (decoder, encoder):
        kernels.finish()


def _run(db: Connection, query: str, texts: list[str]) -> tuple[float, Mapping[str, float]]:
    """Run once; return seconds and what the model did meanwhile."""
    done = db._require_session().engines.done
    before = done.snapshot()
    start = time.perf_counter()
    db.execute(query, texts).fetchall()
    seconds = time.perf_counter() - start
    return seconds, {name: v - before.get(name, 0) for name, v in done.snapshot().items()}


def _stages(seconds: float, done: Mapping[str, float]) -> Iterator[_Row]:
    """Yield the stages of the encoder or of generation, what is left, and all."""
    count = {name: int(value) for name, value in done.items()}
    if done.get("generate.tokens"):
        tokens = count["generate.tokens"]
        read = count.get("generate.prompt_tokens", 0)
        stages = {
            "queue": (done.get("generate.queue_seconds", 0), ""),
            "steps": (
                done.get("generate.step_seconds", 0),
                f"{count['generate.steps']} steps: {read} tokens read, {tokens} written",
            ),
        }
    else:
        tokens = count.get("encode.tokens", 0)
        threads = f"in {count.get('encode.batches', 0)} batches, summed over threads"
        stages = {
            "tokenize": (done.get("encode.tokenize_seconds", 0), f"{tokens} tokens"),
            "queue": (done.get("encode.queue_seconds", 0), "waiting for a core"),
            "forward": (done.get("encode.forward_seconds", 0), threads),
            "pool": (done.get("encode.pool_seconds", 0), ""),
        }
    wall = done.get("encode.seconds") or sum(spent for spent, _ in stages.values())
    for stage, (spent, note) in stages.items():
        yield _row(stage, spent, seconds, tokens, note)
    yield _row("statement", max(seconds - wall, 0.0), seconds, tokens, "SQL around the model")
    rate = f"{tokens / seconds:.0f} tokens/s" if tokens else ""
    yield _row("all", seconds, seconds, tokens, rate)


def _row(stage: str, spent: float, seconds: float, tokens: int, note: str) -> _Row:
    per_token = round(spent * 1e6 / tokens, 2) if tokens else None
    return (stage, round(spent * 1000, 3), round(spent / seconds, 3), per_token, note)
