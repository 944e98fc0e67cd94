"""A new process that finds a decoder packed in the file, beside one that packs it itself.

Weights are random, of the shape of a 110M Llama unless told otherwise. Every sample is a fresh
process, taken in turn, with the model's kernels ready before the clock starts: time to the first
token through SQL, memory that is the process's own afterwards, and speed of decoding.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from typing import Any

from benchmarks import harness, inputs, processes
from benchmarks.workloads.decode import SHAPES, RandomTensors

MODULE = "benchmarks.workloads.packed_weights"
PACKAGES = ("numpy", "numba", "tokenizers")
TEXT, TOKENS = "a", 48
MODES = {"packs": "off", "maps": "on"}
"""What a process does -> its setting ``packed_weights``."""


def make(folder: pathlib.Path, shape: str, quantize: str) -> dict[str, Any]:
    """Make the file, packed weights in it."""
    import safetensors.numpy
    import tokenizers

    import tarsdb
    from tarsdb.engine.inference import packed_weights

    source = folder / "model"
    source.mkdir()
    tensors = RandomTensors(SHAPES[shape])
    config = {**SHAPES[shape], "eos_token_id": None}  # no text ends before its time
    (source / "config.json").write_text(json.dumps(config))
    words = {chr(ord(TEXT) + token): token for token in range(1000)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=words, merges=[]))
    (source / "tokenizer.json").write_text(tokenizer.to_str())
    safetensors.numpy.save_file(
        {name: tensors[name] for name in tensors}, source / "model.safetensors"
    )
    with tarsdb.connect(folder / "bench.tars") as db:
        db.execute(f"CREATE MODEL m FROM '{source}' WITH (quantize = '{quantize}')")
        before = (folder / "bench.tars").stat().st_size
        db.generate("m", TEXT, max_tokens=1)
        packed_weights.queue_of(db._require_session().env).wait()
    return {"file_bytes_added": (folder / "bench.tars").stat().st_size - before}


def sample(folder: pathlib.Path, setting: str, quantize: str) -> dict[str, Any]:
    """Return the figures of one process."""
    import tarsdb
    from tarsdb.kernels import decoder as kernels
    from tarsdb.model_ops.decoder import is_proven
    from tarsdb.model_ops.weights import QUANTIZE

    kernel = kernels.wait(QUANTIZE[quantize])
    if kernel is not None:
        is_proven(kernel)
    with tarsdb.connect(folder / "bench.tars") as db:
        for text in (f"packed_weights = {setting}", "inference_cache = off",
                     "kv_cache_memory = '64MB'", "model_threads = 1"):  # fmt: skip
            db.execute(f"SET {text}")
        private, started = _private_bytes(), time.perf_counter()
        query = f"SELECT generate('m', '{TEXT}', max_tokens => ?)"
        db.execute(query, (1,)).fetchall()
        first, added = time.perf_counter() - started, _private_bytes() - private
        started = time.process_time()
        db.execute(query, (TOKENS,)).fetchall()
        return {
            "first_token_s": first, "private_bytes": added,
            "cpu_ms_a_token": (time.process_time() - started) * 1000 / TOKENS,
        }  # fmt: skip


def _private_bytes() -> int:
    """Return the memory that was written to and is this process's own."""
    lines = pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty"))


def run(shape: str, quantize: str, repeats: int) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    samples: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    with inputs.scratch() as folder:
        chosen = "--folder", folder, "--shape", shape, "--quantize", quantize
        made = processes.call(MODULE, "--child", "make", *chosen)
        for _ in range(repeats):
            for mode, found in samples.items():
                found.append(processes.call(MODULE, "--child", MODES[mode], *chosen))
    found = {
        mode: {key: harness.summary(each[key] for each in taken) for key in taken[0]}
        for mode, taken in samples.items()
    }
    return {"shape": f"{shape}, random weights", "quantize": quantize, **made, **found}


def main() -> None:
    """Measure and store, or be a child."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="110M")
    parser.add_argument("--quantize", choices=("none", "bf16", "int8", "int4"), default="int8")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child")
    parser.add_argument("--folder", type=pathlib.Path)
    given = parser.parse_args()
    if given.child == "make":
        print(json.dumps(make(given.folder, given.shape, given.quantize)))
    elif given.child:
        print(json.dumps(sample(given.folder, given.child, given.quantize)))
    else:
        record = run(given.shape, given.quantize, given.repeats)
        for mode in MODES:
            print(f"  {mode:<6}", {key: taken["median"] for key, taken in record[mode].items()})
        harness.write("packed_weights", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
