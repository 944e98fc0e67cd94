"""Plans and bound expressions as text: the lines EXPLAIN shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tarsdb.schema import IndexDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql import plan as pl

Lines = list[str]


def explain(plan: pl.Plan) -> list[str]:
    """Return the plan as a tree: one line a node, details and inputs indented below it."""
    describe = _PLANS.get(type(plan))
    return [_words(plan)] if describe is None else describe(plan)


def expression(node: ex.Expr | None) -> str:
    """Return a bound expression as SQL-like text."""
    return "" if node is None else _TEXTS[type(node)](node)


def _binary(node: ex.Compare | ex.Arithmetic | ex.Distance) -> str:
    return f"{_operand(node.left)} {node.op} {_operand(node.right)}"


def _distance(node: ex.Distance) -> str:
    if not node.function:
        return _binary(node)
    sides = (node.right, node.left) if node.is_swapped else (node.left, node.right)
    return f"{node.function}({_list(sides)})"


def _parameter(node: ex.Parameter) -> str:
    return f"${node.key + 1}" if isinstance(node.key, int) else f":{node.key}"


def _not(node: ex.Not) -> str:
    if isinstance(node.operand, ex.IsNull):
        return f"{_operand(node.operand.operand)} IS NOT NULL"
    return f"NOT {_operand(node.operand)}"


def _call(node: ex.Call) -> str:
    is_named = node.kind in ("model", "tokenizer") and node.target
    parts = [f"'{node.target}'"] if is_named else []
    parts += [_list(node.args)] if node.args else []
    parts += [f"{name} => {expression(value)}" for name, value in node.options]
    return f"{node.name}({', '.join(parts)})"


def _scalar(node: ex.Scalar) -> str:
    if node.name == "||":
        return " || ".join(_operand(each) for each in node.args)
    if node.name == "cast":
        return f"CAST({expression(node.args[0])} AS {node.returns})"
    return f"{node.name}({_list(node.args)})"


def _like(node: ex.Like) -> str:
    how = "ILIKE" if node.ignores_case else "LIKE"
    return f"{_operand(node.operand)} {how} {_operand(node.pattern)}"


def _case(node: ex.Case) -> str:
    pairs = zip(node.conditions, node.values, strict=False)
    parts = [f"WHEN {expression(test)} THEN {expression(found)}" for test, found in pairs]
    return f"CASE {' '.join(parts)} ELSE {expression(node.values[-1])} END"


_TEXTS: dict[type[Any], Callable[[Any], str]] = {
    ex.Literal: lambda node: _literal(node.value),
    ex.Parameter: _parameter,
    ex.Guarded: lambda node: f"{_call(node.call)} WHERE {expression(node.condition)}",
    ex.ColumnRef: lambda node: str(node.column.name),
    ex.RowidRef: lambda node: ex.ROWID,
    ex.Excluded: lambda node: f"excluded.{node.column.name}",
    ex.Compare: _binary,
    ex.Arithmetic: _binary,
    ex.Distance: _distance,
    ex.And: lambda node: " AND ".join(_operand(term) for term in node.terms),
    ex.Or: lambda node: " OR ".join(_operand(term) for term in node.terms),
    ex.Not: _not,
    ex.IsNull: lambda node: f"{_operand(node.operand)} IS NULL",
    ex.Like: _like,
    ex.InList: lambda node: f"{_operand(node.operand)} IN ({_list(node.items)})",
    ex.Call: _call,
    ex.Scalar: _scalar,
    ex.Case: _case,
}


def _operand(node: ex.Expr) -> str:
    text = expression(node)
    compound = (ex.And, ex.Or, ex.Arithmetic, ex.Distance, ex.Compare)
    return f"({text})" if isinstance(node, compound) else text


def _list(items: Iterable[ex.Expr]) -> str:
    shown = [expression(item) for item in items]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:8], f"... {len(shown)} items"])


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    return "'" + shown.replace("'", "''") + "'" if isinstance(value, str) else shown


def _indent(lines: Iterable[str]) -> Lines:
    return [f"  {line}" for line in lines]


def _detail(name: str, node: ex.Expr | None) -> Lines:
    return [] if node is None else [f"  {name}: {expression(node)}"]


def _outputs(outputs: Iterable[ex.Output]) -> Lines:
    names = [output.name for output in outputs]
    shown = names if len(names) <= 12 else [*names[:12], f"... {len(names)} columns"]
    return [f"  output: {', '.join(shown)}"]


def _point_lookup(plan: pl.PointLookup) -> Lines:
    head = f"PointLookup {plan.table.name}{_using(plan.table, plan.index, plan.key)}"
    return [head, *_detail("filter", plan.predicate), *_outputs(plan.outputs)]


def _using(table: TableDef, index: IndexDef, key: tuple[ex.Expr, ...]) -> str:
    names = [table.column_by_id(i).name for i in index.column_ids]
    pairs = ", ".join(f"{n} = {expression(v)}" for n, v in zip(names, key, strict=True))
    return f" using {index.name} ({pairs})"


def _found(plan: pl.Update | pl.Delete) -> tuple[str, Lines]:
    """Return how the rows of a native plan are found: behind its name, and below."""
    if plan.key is None:
        return "", _detail("filter", plan.predicate)
    using = _using(plan.table, plan.key.index, plan.key.key)
    return using, _detail("filter", plan.key.rest)


def _scan(plan: pl.Scan) -> Lines:
    order = ", ".join(map(_order_by, plan.order))
    details = _detail("filter", plan.predicate) + ([f"  order: {order}"] if order else [])
    details += _detail("limit", plan.limit)
    return [f"Scan {plan.table.name}", *details, *_detail("offset", plan.offset),
            *_outputs(plan.outputs)]  # fmt: skip


def _order_by(by: pl.OrderBy) -> str:
    nulls = " NULLS FIRST" if by.nulls_first else ""
    return f"{by.column.name}{' DESC' if by.descending else ''}{nulls}"


def _one_row(plan: pl.OneRow) -> Lines:
    return ["OneRow", *(f"  {expression(output.expr)}" for output in plan.outputs)]


def _aggregate(plan: pl.Aggregate) -> Lines:
    calls = [
        "count(*)" if c.operand is None else f"{c.function}({expression(c.operand)})"
        for c in plan.calls
    ]
    return [f"Aggregate {plan.table.name}: {', '.join(calls)}", *_detail("filter", plan.predicate)]


def _knn(plan: pl.Knn) -> Lines:
    if plan.distance.function:
        head = f"Knn {plan.table.name} by {expression(plan.distance)}"
    else:
        query = expression(plan.distance.right)
        head = f"Knn {plan.table.name}.{plan.column.name} {plan.distance.op} {query}"
    head += f", k={expression(plan.limit)}" if plan.limit is not None else ""
    head += ", descending" if plan.descending else ""
    lines = [head]
    if plan.within is not None:
        sign = "<=" if plan.within_inclusive else "<"
        lines.append(f"  within: distance {sign} {expression(plan.within)}")
    lines += _detail("offset", plan.offset) + _detail("filter", plan.predicate)
    if plan.filters:
        lines.append(f"  filter candidates by: {' AND '.join(map(expression, plan.filters))}")
    if plan.needs_filter_sql is not None:
        lines += ["  filter rows by:", *_indent(_indent(_relational(plan.needs_filter_sql)))]
    return [*lines, *_outputs(plan.outputs)]


def _relational(plan: pl.Relational) -> Lines:
    lines = [f"Relational {' '.join(plan.sql.split())}"]
    lines += [f"  note: {note}" for note in plan.notes]
    lines += [f"  constant ${name}: {expression(value)}" for name, value in plan.constants]
    for relation in plan.relations:
        lines += _indent(_relation(relation))
    return lines


def _relation(relation: pl.Relation) -> Lines:
    links = [
        f"  only rows with {each.column.name} = {each.relation}.{each.of.name}"
        for each in relation.links
    ]
    if relation.knn is not None:
        grows = ["  k: as many as LIMIT takes behind the join"] if relation.window else []
        return [f"{relation.name}:", *_indent(_knn(relation.knn)), *_indent([*grows, *links])]
    if relation.system is not None:
        return [f"{relation.name}: system table {relation.system}"]
    if relation.variable is not None:
        return [f"{relation.name}: Python variable {relation.variable}"]
    names = [column.name for column in relation.columns]
    names += [ex.ROWID] if relation.with_rowid else []
    names += [output.name for output in relation.computed]
    table = relation.table.name if relation.table is not None else ""
    what = "rows being written" if relation.batch else f"Scan {table}"
    line = f"{relation.name}: {what} ({', '.join(names)})"
    how = "filter" if relation.filtered else "filter early"
    computed = [f"  {output.name}: {expression(output.expr)}" for output in relation.computed]
    return [line, *_detail(how, relation.predicate), *links, *computed]


def _variable_scan(plan: pl.VariableScan) -> Lines:
    names = "all columns" if plan.columns is None else ", ".join(plan.columns)
    return [f"VariableScan Python variable {plan.variable} ({names})"]


def _insert(plan: pl.Insert) -> Lines:
    names = ", ".join(column.name for column in plan.columns)
    lines = [f"Insert {plan.table.name} ({names})"]
    lines.append(f"  values: {len(plan.rows)} rows" if plan.query is None else "  from:")
    lines += _indent(_indent(explain(plan.query))) if plan.query is not None else []
    lines += _conflict(plan.on_conflict) if plan.on_conflict is not None else []
    return lines + _returning(plan)


def _conflict(action: pl.OnConflict) -> Lines:
    where = f" ({action.index.name})" if action.index is not None else ""
    if action.relational is not None:
        names = ", ".join(column.name for column in action.columns)
        inner = _indent(_indent(_relational(action.relational)))
        return [f"  on conflict{where}: update {names}", *inner]
    if action.assignments is None:
        return [f"  on conflict{where}: nothing"]
    sets = ", ".join(f"{c.name} = {expression(v)}" for c, v in action.assignments)
    return [f"  on conflict{where}: update {sets}", *_detail("where", action.where)]


def _update(plan: pl.Update) -> Lines:
    if plan.source is None:
        pairs = zip(plan.columns, plan.assignments, strict=True)
        using, filters = _found(plan)
        lines = [f"Update {plan.table.name}{using}"]
        lines += [f"  set: {column.name} = {expression(value)}" for column, value in pairs]
        return lines + filters + _returning(plan)
    names = ", ".join(column.name for column in plan.columns)
    head = [f"Update {plan.table.name} ({names})", "  rows from:"]
    return head + _indent(_indent(_relational(plan.source))) + _returning(plan)


def _delete(plan: pl.Delete) -> Lines:
    using, filters = _found(plan)
    lines = [f"Delete {plan.table.name}{using}", *filters]
    if plan.source is not None:
        lines += ["  rows from:", *_indent(_indent(_relational(plan.source)))]
    return lines + _returning(plan)


def _returning(plan: pl.Insert | pl.Update | pl.Delete) -> Lines:
    if plan.returning_sql is not None:
        return ["  returning:", *_indent(_indent(_relational(plan.returning_sql)))]
    if plan.returning is None:
        return []
    return [f"  returning: {', '.join(output.name for output in plan.returning)}"]


def _create_table(plan: pl.CreateTable) -> Lines:
    lines = [f"CreateTable {plan.name}"]
    lines += [f"  {column.name} {column.type}" for column in plan.columns]
    return lines + (_indent(explain(plan.query)) if plan.query is not None else [])


def _copy(plan: pl.Copy) -> Lines:
    what = plan.table.name if plan.table is not None else "query"
    lines = [f"Copy {what} {plan.direction} '{plan.path}'"]
    return lines + (_indent(explain(plan.query)) if plan.query is not None else [])


def _words(plan: pl.Plan) -> str:
    """Return a node without inputs: its name and what is set of its fields."""
    parts = [
        f"{name}={value!r}"
        for name, value in vars(plan).items()
        if value not in (None, False, (), {}) and not isinstance(value, dict)
    ]
    return f"{type(plan).__name__} {', '.join(parts)}".rstrip()


_PLANS: dict[type[Any], Callable[[Any], Lines]] = {
    pl.PointLookup: _point_lookup, pl.Scan: _scan, pl.OneRow: _one_row,
    pl.Aggregate: _aggregate, pl.Knn: _knn, pl.Relational: _relational,
    pl.VariableScan: _variable_scan, pl.Insert: _insert,
    pl.Update: _update, pl.Delete: _delete,
    pl.CreateTable: _create_table, pl.Copy: _copy, pl.Explain: lambda plan: explain(plan.target),
}  # fmt: skip
