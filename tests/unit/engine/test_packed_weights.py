"""Models that lie packed in the file: the same answers, mapped, shared, let go of."""

from __future__ import annotations

import gc
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.inference import inference_cache, models, packed_weights
from tarsdb.engine.inference.loaded_models import loaded_models
from tarsdb.errors import DataError, ModelError, ReadOnlyError
from tarsdb.kernels import dispatch
from tarsdb.metrics import METRICS
from tarsdb.storage import failpoints, packed
from tarsdb.storage.transaction import WriteTxn
from tests.golden.models.tiny_decoders import (
    CONFIGS,
    tiny_prompts,
    tiny_text,
    write_tiny_decoder,
)
from tests.golden.models.tiny_lora import write_tiny_lora
from tests.unit.model_ops.conftest import model_dir as model_dir

pytestmark = pytest.mark.skipif(
    not packed.CAN_OVERLAY or dispatch.level() == "portable", reason="nothing is mapped here"
)
PROMPT = tiny_text(tiny_prompts()[2])
GENERATE = "SELECT generate('m', '{}', max_tokens => 12)".format(PROMPT.replace("'", "''"))
EMBED = "SELECT embed('m', 'a date')"


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(packed_weights, "SMALLEST_BYTES", 0)
    yield
    failpoints.disarm()


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "db.tars"


@pytest.fixture
def db(path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(path) as connection:
        connection.execute("SET inference_cache = off")
        yield connection


def create(
    db: tarsdb.Connection, family: str = "qwen3", quantize: str = "none", name: str = "m"
) -> None:
    folder = pathlib.Path(db._require_session().env.path).parent / family
    write_tiny_decoder(folder, family)
    db.execute(f"CREATE MODEL {name} FROM '{folder}' WITH (quantize = '{quantize}')")


def settle(db: tarsdb.Connection) -> None:
    """Return when what waits is in the file."""
    packed_weights.queue_of(db._require_session().env).wait()


def forget(db: tarsdb.Connection) -> None:
    """Let go of loaded models, as another process would not have them."""
    loaded_models(db._require_session().env).keep_only(())
    gc.collect()


def counted(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return what work returns, and what it added to the counters of packed weights."""
    before = METRICS.snapshot()
    result = work()
    added = {k: v - before.get(k, 0) for k, v in METRICS.snapshot().items()}
    names = [k for k in added if k.startswith("packed_weights.")]
    return result, {k.partition(".")[2]: added[k] for k in names if added[k]}


def stored(db: tarsdb.Connection) -> int:
    with db._require_session().env.read() as txn:
        return packed.size_bytes(txn)


def ask(db: tarsdb.Connection, query: str) -> Any:
    return db.execute(query).fetchall()


@pytest.mark.parametrize("quantize", ["none", "bf16", "int8", "int4"])
@pytest.mark.parametrize("family", ["qwen3", "gemma3", "llama_biased", "llama"])
def test_a_mapped_decoder_writes_the_same(
    db: tarsdb.Connection, family: str, quantize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(db, family, quantize)
    first, counts = counted(lambda: ask(db, GENERATE))
    assert counts["misses"] == 1
    settle(db)
    assert stored(db) > 0
    assert ask(db, GENERATE) == first  # from the file's pages by now
    forget(db)
    db.execute("SET packed_weights = off")
    assert counted(lambda: ask(db, GENERATE)) == (first, {})
    db.execute("SET packed_weights = on")
    forget(db)
    read = list[str]()
    monkeypatch.setattr(models._Tensors, "__getitem__", lambda _, name: read.append(name))
    assert counted(lambda: ask(db, GENERATE)) == (first, {"hits": 1})
    assert read == []


@pytest.mark.parametrize("quantize", ["none", "bf16", "int8", "int4"])
def test_a_mapped_encoder_has_the_same_vectors(
    db: tarsdb.Connection, model_dir: pathlib.Path, quantize: str
) -> None:
    db.execute(f"CREATE MODEL m FROM '{model_dir}' WITH (quantize = '{quantize}')")
    ((first,),) = ask(db, EMBED)
    settle(db)
    ((second,),) = ask(db, EMBED)
    forget(db)
    (((third,),), counts) = counted(lambda: ask(db, EMBED))
    assert counts == {"hits": 1}
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)


def test_an_adapter_of_a_mapped_model_adapts_it(db: tarsdb.Connection, path: pathlib.Path) -> None:
    create(db)
    write_tiny_lora(path.parent / "lora", CONFIGS["qwen3"], 3)
    db.execute(f"CREATE MODEL tuned FROM '{path.parent / 'lora'}' WITH (adapter_of = 'm')")
    query = GENERATE.replace("'m'", "'tuned'")
    first = ask(db, query)
    settle(db)
    forget(db)
    assert counted(lambda: ask(db, query)) == (first, {"hits": 1})
    assert first != ask(db, GENERATE)


def test_all_models_are_packed_when_told_to(db: tarsdb.Connection, path: pathlib.Path) -> None:
    create(db, quantize="int8")
    create(db, "llama", name="other")
    write_tiny_lora(path.parent / "lora", CONFIGS["qwen3"], 3)
    db.execute(f"CREATE MODEL tuned FROM '{path.parent / 'lora'}' WITH (adapter_of = 'm')")
    with tarsdb.connect(path, read_only=True) as reader, pytest.raises(ReadOnlyError):
        reader.execute("PRAGMA pack_models")
    assert stored(db) == 0
    sizes = dict(ask(db, "PRAGMA pack_models"))
    assert sizes.keys() == {"m", "other"}
    assert 0 < sizes["m"] < sum(sizes.values()) == stored(db)
    forget(db)
    assert counted(lambda: ask(db, GENERATE))[1] == {"hits": 1}
    assert dict(ask(db, "PRAGMA pack_models")) == sizes


def test_small_models_are_left_alone(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_weights, "SMALLEST_BYTES", 1 << 30)
    create(db)
    assert counted(lambda: ask(db, GENERATE))[1] == {}
    settle(db)
    assert stored(db) == 0


def test_the_setting_says_no(db: tarsdb.Connection) -> None:
    create(db)
    db.execute("SET packed_weights = off")
    assert counted(lambda: ask(db, GENERATE))[1] == {}
    settle(db)
    assert stored(db) == 0
    with pytest.raises(DataError, match="neither on nor off"):
        db.execute("SET packed_weights = perhaps")


def test_connections_that_only_read_map_and_never_write(
    db: tarsdb.Connection, path: pathlib.Path
) -> None:
    create(db)
    with tarsdb.connect(path, read_only=True) as reader:
        first, counts = counted(lambda: ask(reader, GENERATE))
        settle(reader)
        assert counts == {"misses": 1}
        assert stored(db) == 0
        forget(db)
        ask(db, GENERATE)
        settle(db)
        assert stored(db) > 0
        forget(db)
        assert counted(lambda: ask(reader, GENERATE)) == (first, {"hits": 1})


def test_a_dropped_model_leaves_the_file(db: tarsdb.Connection) -> None:
    create(db)
    ask(db, GENERATE)
    settle(db)
    ((in_file, loaded),) = ask(db, "SELECT bytes_packed, bytes_loaded FROM tars_models")
    assert in_file == stored(db)
    assert 0 < in_file - 64 * 100 * 4 < loaded <= in_file  # but for gaps between arrays
    assert ("bytes packed", str(stored(db))) in ask(db, "DESCRIBE MODEL m")
    db.execute("DROP MODEL m")
    inference_cache.queue_of(db._require_session().env).wait()
    assert stored(db) == 0


def test_the_budget_lets_go_of_mapped_models_and_they_come_back(
    db: tarsdb.Connection, path: pathlib.Path
) -> None:
    create(db)
    write_tiny_decoder(path.parent / "other", "llama")
    db.execute(f"CREATE MODEL other FROM '{path.parent / 'other'}'")
    first = ask(db, GENERATE)
    settle(db)
    taken = loaded_models(db._require_session().env).nbytes()
    db.execute(f"SET model_memory = '{taken / 1000 + 10:.3f}KB'")
    ask(db, GENERATE.replace("'m'", "'other'"))
    assert db.execute("SELECT bytes_loaded FROM tars_models WHERE name = 'm'").fetchone() == (0,)
    assert counted(lambda: ask(db, GENERATE)) == (first, {"hits": 1})


def test_damage_is_noticed_and_mended(db: tarsdb.Connection) -> None:
    create(db)
    first = ask(db, GENERATE)
    settle(db)
    forget(db)

    def spoil(txn: WriteTxn) -> None:
        key, raw = next(iter(txn.range(packed.DATABASE, b"", None)))
        txn.put(packed.DATABASE, key, bytes(raw[:-1]) + bytes([raw[-1] ^ 1]))

    db._require_session().env.stage(spoil)
    assert "packed weights" in ask(db, "PRAGMA integrity_check")[0][0]
    found, counts = counted(lambda: (ask(db, GENERATE), settle(db)))
    assert found[0] == first
    assert counts == {"misses": 1, "stored": 1}
    assert ask(db, "PRAGMA integrity_check") == [("ok",)]


def test_what_cannot_be_written_is_dropped_and_counted(db: tarsdb.Connection) -> None:
    create(db)
    failpoints.arm("packed.before_descriptor", "error")
    _, counts = counted(lambda: (ask(db, GENERATE), settle(db)))
    assert counts == {"misses": 1, "dropped": 1}
    assert stored(db) == 0


def test_a_full_queue_drops(db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_weights, "MOST_WAITING", 0)
    create(db)
    _, counts = counted(lambda: (ask(db, GENERATE), settle(db)))
    assert counts == {"misses": 1, "dropped": 1}


def test_a_model_of_an_open_transaction_is_not_written(db: tarsdb.Connection) -> None:
    db.execute("BEGIN")
    create(db)
    ask(db, GENERATE)
    settle(db)
    db.execute("ROLLBACK")
    assert stored(db) == 0


def test_a_text_ends_when_its_mapped_model_is_dropped(
    db: tarsdb.Connection, path: pathlib.Path
) -> None:
    create(db)
    ask(db, GENERATE)
    settle(db)
    forget(db)
    pieces = db.generate("m", PROMPT, stream=True, max_tokens=40)
    next(pieces)
    with tarsdb.connect(path) as other:
        other.execute("DROP MODEL m")
        other.execute("VACUUM")
    assert stored(db) > 0  # mapped, so kept
    with pytest.raises(ModelError, match="m was dropped or replaced"):
        list(pieces)
    del pieces
    gc.collect()
    db.execute("VACUUM")
    assert stored(db) == 0
