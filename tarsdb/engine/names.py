"""Names as one connection sees them: the catalog, its own functions, its caller's variables."""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Any

from tarsdb.schema import FunctionDef, ModelDef, TableDef, ViewDef
from tarsdb.storage import CatalogView


class Names:
    """The catalog as one connection sees it: plus its functions and its caller's variables."""

    def __init__(
        self, catalog: CatalogView, functions: dict[str, Any], variables: Callable[[str], Any]
    ) -> None:
        self._catalog = catalog
        self._functions = functions
        self._variables = variables
        self.used_variable = False

    def table(self, name: str) -> TableDef | None:
        """Return the table of that name, or None."""
        return self._catalog.table(name)

    def table_names(self) -> list[str]:
        """Return all table names, sorted."""
        return self._catalog.table_names()

    def view(self, name: str) -> ViewDef | None:
        """Return the view of that name, or None."""
        return self._catalog.view(name)

    def has_views(self) -> bool:
        """Return whether there is any view."""
        return self._catalog.has_views()

    def model(self, name: str) -> ModelDef | None:
        """Return the model of that name, or None."""
        return self._catalog.model(name)

    def function(self, name: str) -> FunctionDef | None:
        """Return the sandboxed function of that name, or None."""
        return self._catalog.function(name)

    def has_session_function(self, name: str) -> bool:
        """Return True for a Python function of this connection."""
        return name.lower() in self._functions

    def has_variable(self, name: str) -> bool:
        """Return True for a table-like variable of the caller."""
        found = self._variables(name) is not None
        self.used_variable = self.used_variable or found
        return found


def variables_of(frame: FrameType | None) -> Callable[[str], Any]:
    """Return a function that finds table-like variables of the caller: locals, then globals."""

    def find(name: str) -> Any:
        if frame is None:
            return None
        from tarsdb.engine.reading.scans import is_table_like

        for scope in (frame.f_locals, frame.f_globals):
            if name in scope:
                return scope[name] if is_table_like(scope[name]) else None
        return None

    return find
