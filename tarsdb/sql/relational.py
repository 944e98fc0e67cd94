"""Queries as DuckDB text: base tables become relations, our calls get their registered names.

The tree is changed in place while it is walked; what was met on the way (relations, models,
functions, distances, constants, parameters) ends up in the :class:`Relational` plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from sqlglot import exp

from tarsdb.errors import BindError, NotSupportedError
from tarsdb.schema import ColumnDef, FunctionDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql import moments
from tarsdb.sql.binding import SYSTEM_TABLES, Binding, table_name, where
from tarsdb.sql.calls import OwnCall, refuse_in_from, resolve_call
from tarsdb.sql.computed import leave_to_scan
from tarsdb.sql.core import Core, parameter_key
from tarsdb.sql.dialect import NO_TIME_TRAVEL, OPERATOR_OF, generate
from tarsdb.sql.distances import Distances
from tarsdb.sql.frames import place_windows
from tarsdb.sql.function_calls import (
    one_value,
    rewrite_aggregate,
    rewrite_table,
    table_function,
)
from tarsdb.sql.joined_keys import link_sources, padded_sources, passed
from tarsdb.sql.joined_search import push_joined_search, rows_alone
from tarsdb.sql.plan import Relational, RelationalCall
from tarsdb.sql.pushdown import only_neighbours, push_search, search_note
from tarsdb.sql.scope import Scope, Source, hide_from_stars, owner
from tarsdb.sql.select import TableSelect
from tarsdb.sql.vector_functions import AGGREGATES, ARITHMETIC, VectorFunctions

_STAR_TAKERS = (exp.Count,)


class Rewriter:
    """Turns one query into a :class:`Relational` plan."""

    def __init__(self, binding: Binding, prefix: str = "__r") -> None:
        self.binding = binding
        self.prefix = prefix
        self.sources: list[Source] = []
        self.calls: list[RelationalCall] = []
        self.functions: dict[str, FunctionDef] = {}
        self.session: dict[str, None] = {}
        self.constants: list[tuple[str, ex.Expr]] = []
        self.parameters: dict[int | str, None] = {}
        self.windows: list[FunctionDef] = []
        self.notes: dict[str, None] = {}
        self.distances = Distances(self)
        self.vectors = VectorFunctions(self)
        self._scopes: list[Scope] = []
        self._passes: dict[str, dict[str, tuple[Source, ColumnDef]]] = {}
        self._root: Any = None

    def rewrite(self, tree: Any, titles: Callable[[], list[str]] = list) -> Relational:
        """Rewrite a whole query and return its plan."""
        name_items(tree, titles)
        self._root = tree
        self.query(tree, None, frozenset())
        return self.finish(tree)

    def finish(self, tree: Any) -> Relational:
        """Return the plan of a tree whose parts were all walked."""
        for scope in self._scopes:
            hide_from_stars(scope)
        plan = Relational(
            generate(tree),
            tuple(source.build() for source in self.sources),
            tuple(self.parameters),
            tuple(self.calls),
            tuple(self.functions.values()),
            tuple(self.session),
            tuple(self.distances.registered),
            tuple(self.vectors.registered),
            tuple(self.constants),
            windows=tuple(self.windows),
            notes=tuple(self.notes),
            bits=tuple(self.distances.bits.items()),
        )
        searched = next((source for source in self.sources if source.window is not None), None)
        if searched is None or not (plan.calls or plan.functions or plan.session_functions):
            return plan
        return replace(plan, first=rows_alone(plan, tree, searched))

    def new_scope(self, parent: Scope | None, ctes: frozenset[str], node: Any = None) -> Scope:
        """Return a scope below ``parent``."""
        items = node.expressions if isinstance(node, exp.Select) else ()
        aliases = frozenset(i.alias.lower() for i in items if isinstance(i, exp.Alias))
        scope = Scope(parent, ctes, aliases=aliases, node=node)
        if parent is not None:
            parent.inner.append(scope)
        self._scopes.append(scope)
        return scope

    def query(self, node: Any, parent: Scope | None, ctes: frozenset[str]) -> None:
        """Rewrite a query expression of any form."""
        ctes = self._with(node, parent, ctes)
        if isinstance(node, exp.Select):
            self._select(node, parent, ctes)
        elif isinstance(node, exp.SetOperation):
            self.query(node.this, parent, ctes)
            self.query(node.expression, parent, ctes)
            self._tail(node, parent, ctes)
        elif isinstance(node, exp.Subquery):
            self.query(node.this, parent, ctes)
            self._tail(node, parent, ctes)
        else:
            scope = self.new_scope(parent, ctes)
            scope.sources.append(Source(""))
            if isinstance(node, exp.Table):
                self.source(node, scope)
            else:
                self.children(node, scope)

    def _with(self, node: Any, parent: Scope | None, ctes: frozenset[str]) -> frozenset[str]:
        clause = node.args.get("with_")
        if clause is None:
            return ctes
        for cte in clause.expressions:
            name = frozenset({cte.alias.lower()})
            inner = ctes | name if clause.args.get("recursive") else ctes
            if not isinstance(cte.this, (exp.Query, exp.Values)):
                raise NotSupportedError(f"WITH {cte.alias}: only a query can stand there")
            self.query(cte.this, parent, inner)
            key = cte.alias.lower()
            is_plain = key not in self._passes and not cte.args["alias"].args.get("columns")
            self._passes[key] = self._passed(cte.this) if is_plain else {}
            ctes |= name
        return ctes

    def _passed(self, node: Any) -> dict[str, tuple[Source, ColumnDef]]:
        scope = next((each for each in reversed(self._scopes) if each.node is node), None)
        return passed(node, scope)

    def _tail(self, node: Any, parent: Scope | None, ctes: frozenset[str]) -> None:
        """Walk ORDER BY and LIMIT of a set operation, whose columns are its own."""
        scope = self.new_scope(parent, ctes)
        scope.sources.append(Source(""))
        for part in ("order", "limit", "offset"):
            if node.args.get(part) is not None:
                self.walk(node.args[part], scope)

    def _select(self, node: Any, parent: Scope | None, ctes: frozenset[str]) -> None:
        if node.args.get("locks"):
            raise NotSupportedError("FOR UPDATE and FOR SHARE are not supported")
        if push_search(self, node, parent, ctes):
            return
        self.windows += place_windows(self.binding, node, len(self.windows))
        scope = self.new_scope(parent, ctes, node)
        done = self._sources(node, scope)
        if node is not self._root or not push_joined_search(self, node, scope):
            note = search_note(node, parent)
            if note:
                self.notes[note] = None
                only_neighbours(self, node, scope)
        leave_to_scan(self, node, scope)
        self._push_predicates(node, scope)
        for part, value in list(node.args.items()):
            if part == "with_":
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, exp.Expr) and id(child) not in done:
                    self.walk(child, scope)
        link_sources(node, scope)

    def _sources(self, node: Any, scope: Scope) -> set[int]:
        """Add what FROM lists to the scope; return the ids of the clauses dealt with."""
        origin = node.args.get("from_")
        if origin is not None:
            self.source(origin.this, scope)
        joins = node.args.get("joins") or []
        for join in joins:
            self.join(join, scope)
        laterals = node.args.get("laterals") or []
        for lateral in laterals:
            self.source(lateral, scope)
        return {id(clause) for clause in (origin, *joins, *laterals)}

    def join(self, join: Any, scope: Scope) -> None:
        """Add a join's source to the scope and walk its condition."""
        self.source(join.this, scope)
        if join.args.get("method") == "NATURAL":
            for source in scope.sources:
                source.use_all()
        for name in join.args.get("using") or ():
            for source in scope.sources:
                source.use(name.name)
        for part in ("on", "match_condition"):
            if join.args.get(part) is not None:
                self.walk(join.args[part], scope)

    def source(self, node: Any, scope: Scope) -> None:
        """Add something in FROM to the scope."""
        alias = node.alias.lower() if node.alias else ""
        if table_function(node, self.binding.catalog) is not None:
            node = self._table_function(node, scope)
        elif isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier):
            self._table(node, scope)
        elif isinstance(node, exp.Subquery) and not isinstance(node.this, (exp.Query, exp.Values)):
            self.source(node.this, scope)
        elif isinstance(node, exp.Subquery):
            self.query(node, scope, scope.ctes)
            named = node.args.get("alias")
            is_plain = named is not None and not named.args.get("columns")
            scope.sources.append(Source(alias, passes=self._passed(node.this) if is_plain else {}))
        else:
            refuse_in_from(node)
            self.children(node, scope)
            scope.sources.append(Source(alias))
        for part in ("joins", "laterals"):
            for join in node.args.get(part) or ():
                if isinstance(join, exp.Join):
                    self.join(join, scope)
                else:
                    self.source(join, scope)
        if node.args.get("pivots"):
            for source in scope.sources:
                source.use_all()
            scope.sources.append(Source(""))

    def _table_function(self, node: Any, scope: Scope) -> Any:
        """Rewrite a call in FROM of a function that returns rows; return what took its place."""
        call = resolve_call(self.binding, node.this)
        assert call is not None
        holder = node.parent, node.arg_key, node.index
        alias = (node.alias or call.name).lower()
        rewritten = rewrite_table(node, self._function(call), call.arguments)
        self.children(rewritten, scope)
        scope.sources.append(Source(alias))
        parent, key, index = holder
        found = parent.args[key]
        return found if index is None else found[index]

    def _table(self, node: Any, scope: Scope) -> None:
        name = node.name
        alias = (node.alias or name).lower()
        if name.lower() in scope.ctes and node.args.get("db") is None:
            named = node.args.get("alias")
            is_plain = named is None or not named.args.get("columns")
            passes = self._passes.get(name.lower(), {}) if is_plain else {}
            scope.sources.append(Source(alias, passes=passes))
            return
        if node.args.get("version") is not None:
            raise NotSupportedError(NO_TIME_TRAVEL)
        name = table_name(node)
        table = self.binding.catalog.table(name)
        if table is not None:
            source = self.add_table(table, alias)
        elif name.lower() in SYSTEM_TABLES:
            source = Source(alias, system=name.lower(), relation=self._relation_name())
            self.sources.append(source)
        elif self.binding.catalog.has_variable(name):
            source = Source(alias, variable=name, relation=self._relation_name())
            self.sources.append(source)
        elif any(mark in name for mark in "./*"):
            scope.sources.append(Source(alias))
            return
        else:
            raise self.binding.no_table(node)
        scope.sources.append(source)
        self.rename(node, source, node.name)
        if node.args["alias"].args.get("columns"):
            source.use_all()
            scope.sources.append(Source(""))  # its columns have other names now

    def add_table(self, table: TableDef, alias: str) -> Source:
        """Return a new source over a base table."""
        source = Source(alias, table, self._relation_name())
        self.sources.append(source)
        return source

    def rename(self, node: Any, source: Source, name: str) -> None:
        """Make a Table node name the relation; keep what the query calls it."""
        if node.args.get("alias") is None:
            node.set("alias", exp.TableAlias(this=exp.to_identifier(name)))
        node.set("this", exp.to_identifier(source.relation))
        node.set("db", None)

    def _relation_name(self) -> str:
        return f"{self.prefix}{len(self.sources)}"

    def _push_predicates(self, node: Any, scope: Scope) -> None:
        """Give each base table the native conditions that restrict it alone."""
        condition = node.args.get("where")
        padded = None if condition is None else padded_sources(node, scope)
        if padded is None:
            return
        hits: set[Source] = set()

        def lookup(column: Any) -> ex.Expr | None:
            of = owner(column, scope)
            if of is None or of.table is None or of.batch:
                return None
            found = of.table.column(column.name)
            if found is None or found.type.is_vector:
                return None
            hits.add(of)
            return ex.ColumnRef(found)

        core = Core(self.binding, lookup)
        for term in core.conjuncts(condition.this):
            hits.clear()
            native = core.condition(term)
            if native is not None and len(hits) == 1:
                source = hits.pop()
                if scope.sources.index(source) not in padded:
                    source.terms.append(native)

    def walk(self, root: Any, scope: Scope) -> None:
        """Rewrite an expression and what is below it."""
        stack = [root]
        while stack:
            node = stack.pop()
            if isinstance(node, exp.Query):
                self.query(node, scope, scope.ctes)
                continue
            visit = _VISIT.get(type(node))
            if visit is None or visit(self, node, scope):
                stack.extend(node.iter_expressions())

    def children(self, node: Any, scope: Scope) -> None:
        """Walk what is below a node."""
        for child in node.iter_expressions():
            self.walk(child, scope)

    def visit_column(self, node: Any, scope: Scope) -> bool:
        """Resolve a column or ``table.*``."""
        if isinstance(node.this, exp.Star):
            source = scope.source(node.args["table"].name)
            if source is not None:
                source.use_all()
            scope.stars.append((node.this, node.args["table"].name.lower()))
        else:
            scope.resolve(node)
        return False

    def visit_star(self, node: Any, scope: Scope) -> bool:
        """Note that ``*`` reads every column, but for count(*)."""
        if isinstance(node.parent, _STAR_TAKERS):
            return False
        for source in scope.sources:
            source.use_all()
        scope.stars.append((node, None))
        for replaced in node.args.get("replace") or ():
            self.walk(replaced, scope)
        return False

    def visit_columns(self, node: Any, scope: Scope) -> bool:
        """COLUMNS(...) may read any column."""
        for source in scope.sources:
            source.use_all()
        return False

    def visit_parameter(self, node: Any, scope: Scope) -> bool:
        """Name a parameter the way DuckDB gets it."""
        key = parameter_key(node)
        self.parameters[key] = None
        node.replace(exp.Placeholder(this=f"p{key}" if isinstance(key, int) else key))
        return False

    def visit_moment(self, node: Any, scope: Scope) -> bool:
        """Ask DuckDB for the time, and for its parts, in its own words."""
        found = moments.rewritten(node)
        if found is not node:
            node.replace(found)
        return True

    def visit_cast(self, node: Any, scope: Scope) -> bool:
        """Write our vector types as DuckDB's arrays."""
        self.distances.rewrite_cast(node)
        return True

    def visit_call(self, node: Any, scope: Scope) -> bool:
        """Rename a call of ours; hoist it when it is constant."""
        if node.name in OPERATOR_OF:
            self.distances.rewrite(node, scope)
            return False
        call = resolve_call(self.binding, node)
        if call is None:
            return self.visit_vectors(node, scope)
        if call.kind in ("model", "tokenizer"):
            constant = Core(self.binding, lambda _: None).constant(node)
            if constant is not None:
                node.replace(self.constant(constant))
                return False
        if call.kind == "table":
            raise BindError(
                f"function {call.name} returns rows{where(node)}",
                hint=f"SELECT * FROM {call.name}(...)",
            )
        if call.kind == "aggregate":
            assert call.function is not None
            inner = one_value(call.function, call.arguments)
            rewrite_aggregate(node, call.name, self._function(call), inner)
        else:
            self._rename_call(node, call)
        return True

    def visit_vectors(self, node: Any, scope: Scope) -> bool:
        """Give arithmetic and functions of vectors their meaning."""
        replaced = self.vectors.rewrite(node, scope)
        if replaced is not None:
            self.children(replaced, scope)
        return replaced is None

    def _function(self, call: OwnCall) -> str:
        """Note that a sandboxed function is called; return its name in the text."""
        assert call.function is not None
        self.functions[call.target] = call.function
        return f"__udf_{call.target}"

    def _rename_call(self, node: Any, call: OwnCall) -> None:
        if call.kind in ("model", "tokenizer"):
            name = self._model_call(call)
        elif call.function is not None:
            name = self._function(call)
        else:
            self.session[call.target] = None
            name = f"__udf_{call.target}"
        node.set("this", exp.to_identifier(name) if not name.isidentifier() else name)
        node.set("expressions", list(call.arguments))

    def _model_call(self, call: OwnCall) -> str:
        """Return the name a model function goes by in the text: one for each set of options."""
        bare = ex.Call(call.kind, call.name, call.target, (), call.returns, call.options)
        arity = len(call.arguments)
        taken = set()
        for known in self.calls:
            if (known.call, known.arity) == (bare, arity):
                return known.name
            taken.add(known.name.lower())
        stem = "_".join(filter(None, ("_", call.name, call.target)))
        names = (f"{stem}_{number}" if number > 1 else stem for number in itertools.count(1))
        name = next(name for name in names if name.lower() not in taken)
        self.calls.append(RelationalCall(name, arity, bare, call.takes))
        return name

    def constant(self, expr: ex.Expr) -> Any:
        """Return a placeholder for an expression the engine evaluates once."""
        for name, known in self.constants:
            if known == expr:
                return exp.Placeholder(this=name)
        name = f"__c{len(self.constants)}"
        self.constants.append((name, expr))
        return exp.Placeholder(this=name)


def name_items(tree: Any, titles: Callable[[], list[str]]) -> None:
    """Give the outermost SELECT list's unnamed expressions their source text as names."""
    while isinstance(tree, (exp.SetOperation, exp.Subquery)):
        tree = tree.this
    if not isinstance(tree, exp.Select):
        return
    plain = (exp.Alias, exp.Column, exp.Star, exp.Columns, exp.Aliases, exp.Unnest, exp.Explode)
    if all(isinstance(item, plain) for item in tree.expressions):
        return
    names = titles()
    if len(names) != len(tree.expressions):
        return
    items = [
        item if isinstance(item, plain) or _expands(item)
        else exp.Alias(this=item, alias=exp.to_identifier(name, quoted=True))
        for item, name in zip(tree.expressions, names, strict=True)
    ]  # fmt: skip
    tree.set("expressions", items)


def _expands(item: Any) -> bool:
    """Return True for an item that DuckDB turns into several columns."""
    return any(not isinstance(s.parent, exp.Count) for s in item.find_all(exp.Columns, exp.Star))


def filter_query(select: TableSelect, conditions: Iterable[Any]) -> Relational:
    """Return SQL giving the rowids of the table's rows that pass the conditions."""
    terms = [_without_aliases(select, condition.copy()) for condition in conditions]
    table = exp.Table(
        this=exp.to_identifier(select.table.name),
        alias=exp.TableAlias(this=exp.to_identifier(select.alias)),
    )
    tree = exp.Select(
        expressions=[exp.column(ex.ROWID, table=select.alias)],
        from_=exp.From(this=table),
        where=exp.Where(this=exp.and_(*terms, copy=False)),
    )
    return Rewriter(select.binding).rewrite(tree)


def _without_aliases(select: TableSelect, condition: Any) -> Any:
    holder = exp.Paren(this=condition)
    for column in list(holder.find_all(exp.Column)):
        alias = select.aliases.get(column.name.lower())
        known = column.args.get("table") is not None or select.table.column(column.name)
        if alias is not None and not known:
            column.replace(exp.Paren(this=alias.copy()))
    return holder


_VISIT: dict[type[Any], Callable[[Rewriter, Any, Scope], bool]] = {
    exp.Column: Rewriter.visit_column,
    exp.Star: Rewriter.visit_star,
    exp.Columns: Rewriter.visit_columns,
    exp.Placeholder: Rewriter.visit_parameter,
    exp.Parameter: Rewriter.visit_parameter,
    exp.Cast: Rewriter.visit_cast,
    exp.TryCast: Rewriter.visit_cast,
    exp.Anonymous: Rewriter.visit_call,
    **dict.fromkeys(moments.KINDS, Rewriter.visit_moment),
    **dict.fromkeys((*ARITHMETIC, *AGGREGATES), Rewriter.visit_vectors),
}
