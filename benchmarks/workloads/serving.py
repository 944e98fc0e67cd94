"""Many texts at a time: continuous batching and shared prefixes, beside one text after another.

Weights are random, of the shape of a 110M Llama, so the figures are about speed only: 16 requests
of mixed lengths entered together against the same requests one after another, and how soon a
second request begins whose first 1,000 tokens another one had. Texts are compared, too: they must
not depend on the company. ``PYTHONPATH=. python -m benchmarks.workloads.serving``
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.workloads.decode import SHAPES, RandomTensors
from tarsdb.model_ops import Decoder
from tarsdb.model_ops.generation.constraint import ConstraintCompiler
from tarsdb.model_ops.generation.generation_options import GenerationOptions
from tarsdb.model_ops.generation.generator import DEFAULT_CACHE_BYTES, Generator
from tarsdb.model_ops.generation.prompts import PromptTokenizer

PACKAGES = ("numpy", "numba", "tokenizers")
REQUESTS = 16
PREFIX = 1000
CONFIG = {**SHAPES["110M"], "max_position_embeddings": 2048}


def tokenizer(vocabulary: int) -> bytes:
    """Return a tokenizer with one made-up word per token."""
    import tokenizers

    words = {"<unk>": 0, **{f"w{number}": number for number in range(1, vocabulary)}}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return str(made.to_str()).encode()


def generator(quantize: str, threads: int) -> Generator:
    """Return a model of random weights."""
    files = {"config.json": json.dumps(CONFIG).encode(),
             "tokenizer.json": tokenizer(CONFIG["vocab_size"])}  # fmt: skip
    decoder = Decoder.from_files(files, RandomTensors(CONFIG), {"quantize": quantize})
    decoder.threads = threads
    constraints = ConstraintCompiler(files["tokenizer.json"], decoder.spec.vocabulary, ())
    return Generator(decoder, PromptTokenizer(files), constraints)


def words(count: int, seed: int) -> str:
    """Return a text of so many tokens."""
    numbers = np.random.default_rng(seed).integers(3, CONFIG["vocab_size"], count)
    return " ".join(f"w{number}" for number in numbers.tolist())


def options(tokens: int) -> GenerationOptions:
    """Return options of a greedy text of so many tokens, without guesses."""
    return GenerationOptions.from_mapping({"max_tokens": tokens, "speculate": False})


def fresh(model: Generator, turn: int) -> None:
    """Give the model an empty KV cache."""
    model.reserve(DEFAULT_CACHE_BYTES + turn % 2)


def together(model: Generator, repeats: int) -> dict[str, Any]:
    """Measure requests that enter at once, and one after another, each with an empty cache."""
    random = np.random.default_rng(5)
    lengths, answers = (random.integers(16, 128, REQUESTS).tolist() for _ in range(2))
    prompts = [words(length, number) for number, length in enumerate(lengths)]
    asked = list(zip(prompts, map(options, answers), strict=True))
    seconds: dict[str, list[float]] = {"together": [], "one after another": []}
    texts: set[tuple[str, ...]] = set()
    for _ in range(repeats):
        fresh(model, 0)
        start = time.perf_counter()
        streams = [model.stream(prompt, chosen) for prompt, chosen in asked]
        texts.add(tuple("".join(stream) for stream in streams))
        seconds["together"].append(time.perf_counter() - start)
        fresh(model, 1)
        start = time.perf_counter()
        texts.add(tuple("".join(model.stream(prompt, chosen)) for prompt, chosen in asked))
        seconds["one after another"].append(time.perf_counter() - start)
    figures = {name: harness.summary(taken) for name, taken in seconds.items()}
    tokens = sum(answers)
    return {
        "requests": REQUESTS, "prompt_tokens": sum(lengths), "tokens": tokens,
        "texts_equal": len(texts) == 1, "seconds": figures,
        "tokens_per_second": {n: round(tokens / f["median"], 1) for n, f in figures.items()},
        "times_sooner": figures["one after another"]["median"] / figures["together"]["median"],
    }  # fmt: skip


def prefix(model: Generator, repeats: int) -> dict[str, Any]:
    """Measure the time to the first token of two prompts that begin with the same 1,000 tokens."""
    seconds: dict[str, list[float]] = {"first": [], "second": []}
    for turn in range(repeats):
        fresh(model, turn)
        common = words(PREFIX, 100 + turn)
        for name, taken in seconds.items():
            start = time.perf_counter()
            stream = model.stream(f"{common} {words(8, len(name))}", options(2))
            next(stream)
            taken.append(time.perf_counter() - start)
            stream.close()
    figures = {name: harness.summary(taken) for name, taken in seconds.items()}
    return {
        "prefix_tokens": PREFIX, "seconds": figures,
        "times_sooner": figures["first"]["median"] / figures["second"]["median"],
    }  # fmt: skip


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--print", action="store_true", help="print only, store nothing")
    given = parser.parse_args()
    model = generator(given.quantize, given.threads)
    record = {
        "shape": "110M, random weights", "quantize": given.quantize, "threads": given.threads,
        "prefix": prefix(model, given.repeats), "together": together(model, given.repeats),
    }  # fmt: skip
    print(json.dumps(record, indent=2))
    if not given.print:
        harness.write("serving", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
