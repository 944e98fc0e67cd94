"""What a caged DuckDB was told, one by one: each stands behind checks of ours, so none shows."""

from __future__ import annotations

import duckdb
import pytest

from tarsdb.engine.by_duckdb.relational import open_caged

SHUT = {
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "allow_persistent_secrets": "false",
    "lock_configuration": "true",
    "temp_directory": "",
    "TimeZone": "UTC",
}


@pytest.mark.parametrize("file_access", [False, True])
def test_the_settings_of_a_cage(file_access: bool) -> None:
    with open_caged(file_access, None, None) as connection:
        found = dict(connection.execute("SELECT name, value FROM duckdb_settings()").fetchall())
    wanted = {**SHUT, "enable_external_access": str(file_access).lower()}
    assert {name: str(found[name]) for name in wanted} == wanted


def test_an_open_duckdb_would_be_noticed() -> None:
    with duckdb.connect(":memory:") as connection:
        found = dict(connection.execute("SELECT name, value FROM duckdb_settings()").fetchall())
    assert {name for name in SHUT if str(found[name]) == SHUT[name]} <= {
        "temp_directory",
        "TimeZone",
    }
