"""What the binder needs to know of a database: a Protocol that storage's catalog satisfies."""

from __future__ import annotations

from typing import Protocol

from tarsdb.schema import FunctionDef, ModelDef, TableDef, ViewDef


class Catalog(Protocol):
    """Names to definitions, all of one snapshot; lookups ignore case."""

    def table(self, name: str) -> TableDef | None:
        """Return the table of that name, or None."""

    def table_names(self) -> list[str]:
        """Return all table names, sorted (for suggestions in errors)."""

    def view(self, name: str) -> ViewDef | None:
        """Return the view of that name, or None."""

    def has_views(self) -> bool:
        """Return whether there is any view."""

    def model(self, name: str) -> ModelDef | None:
        """Return the model of that name, or None."""

    def function(self, name: str) -> FunctionDef | None:
        """Return the sandboxed function of that name, or None."""

    def has_session_function(self, name: str) -> bool:
        """Return True for a function made by ``create_function`` on this connection."""

    def has_variable(self, name: str) -> bool:
        """Return True when the caller's frame holds a table-like variable of that name."""
