"""Fixtures of the SQL front end's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from catalog_fixture import DOCS, QUERIES, USERS, FakeCatalog


@pytest.fixture
def catalog() -> FakeCatalog:
    return FakeCatalog(DOCS, USERS, QUERIES)
