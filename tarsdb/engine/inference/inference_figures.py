"""What models did: in words for EXPLAIN ANALYZE of a statement, and rates for ``tars_metrics``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_STAGES = ("tokenize", "queue", "forward", "pool")


def rates(values: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Yield tokens per second of encoders and of generation, from counters."""
    for kind in ("encode", "generate"):
        tokens, seconds = values.get(f"{kind}.tokens", 0), _seconds(values, kind)
        if tokens and seconds:
            yield f"{kind}.tokens_per_second", tokens / seconds


def _seconds(values: Mapping[str, float], kind: str) -> float:
    return values.get(f"{kind}.seconds", values.get(f"{kind}.step_seconds", 0))


def _there(count: int, what: str) -> str:
    return f"; {count} {what}" if count else ""


def lines(values: Mapping[str, float]) -> list[str]:
    """Return a line each for results taken from the file, encoders and generation, where any."""

    def count(name: str) -> int:
        return int(values.get(name, 0))

    found = []
    asked = count("inference_cache.hits") + count("inference_cache.misses")
    if asked:
        found.append(f"inference cache: {count('inference_cache.hits')} of {asked} results known")
    rate = dict(rates(values))
    if count("encode.tokens"):
        stages = ", ".join(
            f"{stage} {values.get(f'encode.{stage}_seconds', 0) * 1000:.3f} ms" for stage in _STAGES
        )
        found.append(
            f"encoder: {count('encode.texts')} texts, {count('encode.tokens')} tokens in "
            f"{count('encode.batches')} batches, {count('encode.padding_avoided')} of padding "
            f"avoided; {stages}; {rate['encode.tokens_per_second']:.0f} tokens/s"
            f"{_there(count('encode.device_batches'), 'batches on the device')}"
        )
    if count("generate.tokens"):
        found.append(
            f"generation: {count('generate.prompt_tokens')} tokens read, "
            f"{count('generate.cached_tokens')} of them known, {count('generate.tokens')} written "
            f"in {count('generate.steps')} steps, {count('generate.preemptions')} preemptions; "
            f"queue {values.get('generate.queue_seconds', 0) * 1000:.3f} ms; "
            f"{rate.get('generate.tokens_per_second', 0):.0f} tokens/s"
            f"{_there(count('generate.device_steps'), 'steps on the device')}"
            f"{_there(count('generate.recorded_steps'), 'of them recorded')}"
        )
    return found
