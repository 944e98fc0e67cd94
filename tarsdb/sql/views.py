"""Views in a query: each becomes the query it stands for, before anything is bound.

A view that takes columns and rows of one table is merged into a SELECT over it, so that searches
through it use indexes; any other stands as a subquery.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlglot import exp

from tarsdb.errors import BindError
from tarsdb.schema import ViewDef
from tarsdb.sql.binding import SYSTEM_TABLES, table_name, where
from tarsdb.sql.catalog import Catalog

_OWN_PARTS = frozenset({"this", "alias", "db", "catalog"})
_BEFORE_WHERE = ("joins", "laterals", "sample")  # of a SELECT: what takes rows first
_MERGED_PARTS = frozenset({"expressions", "from_", "where"})


def expand(catalog: Catalog, tree: Any, within: tuple[str, ...] = ()) -> bool:
    """Put the queries of views where a statement names them; return whether it names any.

    Parameters
    ----------
    catalog : Catalog
    tree : exp.Expression
        Changed in place.
    within : tuple of str
        The views being expanded, outermost first, in lower case.

    Raises
    ------
    BindError
        A view stands for itself in the end.
    """
    found = False
    for node in list(tree.find_all(exp.Table)) if catalog.has_views() else ():
        view = _view(catalog, node)
        if view is None:
            continue
        name = view.name.lower()
        if name in within:
            raise BindError(f"view {view.name} stands for itself: {' -> '.join((*within, name))}")
        found = True
        query = _query(catalog, view, (*within, name))
        subquery = _subquery(node, view, query)
        node.replace(subquery)
        _merge(catalog, subquery)
    return found


def _view(catalog: Catalog, node: Any) -> ViewDef | None:
    """Return the view a node of FROM names; what a statement changes is no view."""
    if not isinstance(node.this, exp.Identifier) or node.parent is None:
        return None
    if _is_hidden(node) or (view := catalog.view(table_name(node))) is None:
        return None
    holder = node.parent if isinstance(node.parent, exp.Schema) else node
    if isinstance(holder.parent, (exp.Insert, exp.Update, exp.Delete)) and holder.arg_key == "this":
        raise BindError(f"{view.name} is a view, its rows cannot be changed{where(node)}")
    return view


def _is_hidden(node: Any) -> bool:
    """Return whether a name is that of a CTE in sight."""
    if node.args.get("db") is not None:
        return False
    below, above = node, node.parent
    while above is not None:
        clause = above.args.get("with_")
        seen: Sequence[Any]
        if isinstance(above, exp.With):
            ctes = above.expressions
            seen = ctes if above.args.get("recursive") else ctes[: below.index]
        else:
            seen = clause.expressions if clause is not None and clause is not below else ()
        if any(cte.alias.lower() == node.name.lower() for cte in seen):
            return True
        below, above = above, above.parent
    return False


def _query(catalog: Catalog, view: ViewDef, within: tuple[str, ...]) -> Any:
    """Return a view's query, in which no CTE of a statement hides a table."""
    from tarsdb.sql.parser import parse_statement

    query = parse_statement(view.sql).take_tree()
    for node in query.walk():
        node._meta = None  # positions are those of a text the user does not see
    for node in query.find_all(exp.Table):
        known = isinstance(node.this, exp.Identifier) and not _is_hidden(node)
        known = known and node.args.get("db") is None
        if known and (catalog.table(node.name) or node.name.lower() in SYSTEM_TABLES):
            node.set("db", exp.to_identifier("main"))
    expand(catalog, query, within)
    return query


def _subquery(node: Any, view: ViewDef, query: Any) -> Any:
    """Return the subquery that takes the place of a view's name, with what stood beside it."""
    alias = node.args.get("alias")
    named = alias is not None and alias.this is not None
    columns = alias.args.get("columns") if alias is not None else None
    subquery = exp.Subquery(
        this=query,
        alias=exp.TableAlias(
            this=alias.this if named else exp.to_identifier(view.name, quoted=True),
            columns=columns or [exp.to_identifier(c, quoted=True) for c in view.columns],
        ),
    )
    for part, value in node.args.items():
        if value and part not in _OWN_PARTS:
            subquery.set(part, value)
    return subquery


def _merge(catalog: Catalog, subquery: Any) -> None:
    """Let the SELECT around a view read the view's table itself, where that means the same."""
    origin, query = subquery.parent, subquery.this
    outer = origin.parent if isinstance(origin, exp.From) else None
    if not isinstance(outer, exp.Select) or any(outer.args.get(part) for part in _BEFORE_WHERE):
        return
    alias = subquery.args["alias"]
    if alias.args.get("columns") or _parts(subquery) - _OWN_PARTS:
        return
    columns = _columns(catalog, query)
    if columns is None or not _reads_only(outer, subquery, columns):
        return
    table = query.args["from_"].this
    inner = (table.alias or table.name).lower()
    condition = query.args.get("where")
    own = list(condition.find_all(exp.Column)) if condition is not None else []
    if any(c.args.get("table") is not None and c.table.lower() != inner for c in own):
        return
    for column in own:
        column.set("table", alias.this.copy())
    _list_columns(outer, alias.this, columns)
    given = outer.args.get("where")
    terms = [part.this for part in (condition, given) if part is not None]
    if terms:
        outer.set("where", exp.Where(this=exp.and_(*terms, copy=False)))
    subquery.replace(
        exp.Table(this=table.this, db=table.args.get("db"), alias=exp.TableAlias(this=alias.this))
    )


def _columns(catalog: Catalog, query: Any) -> list[str] | None:
    """Return the columns of a query of some columns of one table's rows; None for any other."""
    if not isinstance(query, exp.Select) or _parts(query) - _MERGED_PARTS:
        return None
    table = query.args["from_"].this if query.args.get("from_") is not None else None
    if not isinstance(table, exp.Table) or _parts(table) - _OWN_PARTS:
        return None
    known = catalog.table(table.name) if table.args.get("db") is not None else None
    condition = query.args.get("where")
    if known is None or (condition is not None and condition.find(exp.Query) is not None):
        return None
    found: list[str] = []
    for item in query.expressions:
        if isinstance(item, exp.Star) and not any(item.args.values()):
            found += [column.name for column in known.columns]
        elif isinstance(item, exp.Column) and isinstance(item.this, exp.Identifier):
            column = known.column(item.name)
            if column is None or column.name != item.name:
                return None
            found.append(column.name)
        else:
            return None
    return found if len({name.lower() for name in found}) == len(found) else None


def _parts(node: Any) -> set[str]:
    return {part for part, value in node.args.items() if value}


def _reads_only(outer: Any, subquery: Any, columns: list[str]) -> bool:
    """Return whether a SELECT reads nothing of a view but its columns."""
    known = {name.lower() for name in columns}
    known |= {item.alias.lower() for item in outer.expressions if isinstance(item, exp.Alias)}
    for node in _around(outer, subquery):
        if isinstance(node, (exp.Query, exp.Columns)):
            return False
        if isinstance(node, exp.Star):
            parent = node.parent
            if any(node.args.values()) or not isinstance(parent, (exp.Select, exp.Count)):
                return False
        if isinstance(node, exp.Column) and node.name.lower() not in known:
            return False
    return True


def _around(outer: Any, subquery: Any) -> Iterator[Any]:
    """Yield what is in a SELECT beside a subquery."""
    for node in outer.walk(prune=lambda node: node is subquery):
        if node is not outer and node is not subquery:
            yield node


def _list_columns(outer: Any, alias: Any, columns: list[str]) -> None:
    """Write the columns of a view where a SELECT says ``*``."""
    items = []
    for item in outer.expressions:
        if isinstance(item, exp.Star):
            items += [
                exp.Column(this=exp.to_identifier(name, quoted=True), table=alias.copy())
                for name in columns
            ]
        else:
            items.append(item)
    outer.set("expressions", items)
