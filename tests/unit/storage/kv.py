"""What the tests of the key-value layer share: a change that puts one key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tarsdb.storage.transaction import WriteTxn


class Put:
    """Stores `value` under `key`; `refuse` and `explode` raise in validate and apply."""

    def __init__(
        self,
        key: bytes,
        value: bytes = b"value",
        *,
        refuse: Exception | None = None,
        explode: Exception | None = None,
        before: Callable[[], None] | None = None,
        rows: int = 1,
    ) -> None:
        self.key, self.value = key, value
        self.refuse, self.explode, self.before = refuse, explode, before
        self.rows = rows

    def validate(self, txn: WriteTxn) -> None:
        if self.refuse is not None:
            raise self.refuse

    def apply(self, txn: WriteTxn) -> None:
        if self.before is not None:
            self.before()
        txn.put("delta", self.key, self.value)
        if self.explode is not None:
            raise self.explode

    def log(self) -> list[dict[str, Any]]:
        return [{"put": self.key.hex()}]
