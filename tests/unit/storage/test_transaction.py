"""Read and write transactions against a dictionary, and their lives."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tarsdb.errors import InterfaceError
from tarsdb.options import Durability, OpenOptions
from tarsdb.storage import verify
from tarsdb.storage.environment import Environment
from tarsdb.storage.transaction import WriteTxn
from tests.unit.storage.kv import Put

KEYS = st.binary(min_size=1, max_size=3)


@pytest.fixture
def env(tmp_path: pathlib.Path) -> Iterator[Environment]:
    env = Environment.open(tmp_path / "t.tars", OpenOptions(durability=Durability.RELAXED))
    yield env
    env.release()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, st.binary(max_size=5), max_size=30), KEYS, KEYS)
def test_range_and_last_equal_a_sorted_dictionary(
    env: Environment, data: dict[bytes, bytes], start: bytes, stop: bytes
) -> None:
    def fill(txn: WriteTxn) -> None:
        for key, _ in list(txn.range("delta", b"", None)):
            txn.delete("delta", key)
        txn.put_pairs("delta", list(data), list(data.values()))

    env.stage(fill)
    inside = [(k, v) for k, v in sorted(data.items()) if start <= k < stop]
    with env.read() as txn:
        assert [(k, bytes(v)) for k, v in txn.range("delta", start, stop)] == inside
        assert [k for k, _ in txn.range("delta", start, None)] == sorted(
            k for k in data if k >= start
        )
        last = txn.last("delta", start, stop)
        assert (last and (last[0], bytes(last[1]))) == (inside[-1] if inside else None)
        assert txn.count("delta") == len(data)
        assert txn.get("delta", b"absent!") is None


def test_a_snapshot_does_not_move(env: Environment) -> None:
    env.commit(Put(b"k", b"one"))
    with env.read() as old:
        env.commit(Put(b"k", b"two"))
        assert bytes(old.get("delta", b"k") or b"") == b"one"
        with env.read() as new:
            assert bytes(new.get("delta", b"k") or b"") == b"two"
            assert new.commit_number == old.commit_number + 1
            assert new.timestamp_us > old.timestamp_us


def test_closed_transactions_refuse(env: Environment) -> None:
    txn = env.read()
    txn.close()
    txn.close()
    for use in (
        lambda: txn.get("meta", b"head"),
        lambda: list(txn.range("meta", b"", None)),
        lambda: txn.last("meta", b"", b"z"),
    ):
        with pytest.raises(InterfaceError):
            use()
    leaked = env.stage(lambda write: write)
    with pytest.raises(InterfaceError):
        leaked.put("delta", b"k", b"v")
    with pytest.raises(InterfaceError):
        leaked.get("delta", b"k")


def test_a_dropped_transaction_ends(env: Environment) -> None:
    txn = env.read()
    assert len(env.live_readers()) == 1
    del txn
    assert env.live_readers() == []


def test_any_order_is_accepted(env: Environment) -> None:
    def work(txn: WriteTxn) -> None:
        for key in (b"b", b"a", b"c"):
            txn.put("delta", key, key, append=True)
        txn.put_pairs("delta", [b"x1", b"x0", b"x2"], [b"1", b"0", b"2"])
        txn.put_pairs("index", [b"y1", b"y0", b"y0"], [b"1" * 8, b"0" * 8, b"3" * 8])

    env.stage(work)
    with env.read() as txn:
        assert [k for k, _ in txn.range("delta", b"", None)] == [
            b"a",
            b"b",
            b"c",
            b"x0",
            b"x1",
            b"x2",
        ]
        assert bytes(txn.get("delta", b"x0") or b"") == b"0"


def test_shrinking_a_value_leaves_a_file_that_verifies(env: Environment) -> None:
    def work(txn: WriteTxn) -> None:
        for size in (20000, 900, 70000, 5000, 20):
            txn.put("blocks", b"k", bytes(size))
            txn.put_pairs("blocks", [b"m", b"l"], [bytes(size), b""])

    env.stage(work)
    assert verify.find_problems(env.path, None) == ([], True)
    with env.read() as txn:
        assert len(txn.get("blocks", b"k") or b"") == 20


def test_bump_catalog(env: Environment) -> None:
    class Ddl(Put):
        def apply(self, txn: WriteTxn) -> None:
            txn.bump_catalog()

    env.commit(Put(b"a"))
    info = env.commit(Ddl(b""))
    env.commit(Put(b"b"))
    with env.read() as txn:
        assert (txn.catalog_version, txn.commit_number) == (info.number, info.number + 1)
    with pytest.raises(InterfaceError):
        env.stage(lambda write: write.bump_catalog())
