"""CREATE VIEW and DROP VIEW; what columns a view has."""

from __future__ import annotations

from tarsdb.engine.context import Context
from tarsdb.engine.executor import run
from tarsdb.engine.references import may_create
from tarsdb.engine.result import Result
from tarsdb.engine.tables import DONE, refuse_reserved
from tarsdb.errors import BindError, CatalogError
from tarsdb.schema import ViewDef
from tarsdb.sql import bind, parse
from tarsdb.sql.names import quoted
from tarsdb.sql.plan import CreateView, Query


def create_view(context: Context, plan: CreateView) -> Result:
    """Run CREATE VIEW; its query is planned once, so that a mistake is found now.

    Raises
    ------
    CatalogError
        The name is taken.
    BindError
        A name in the query does not resolve, or it has parameters.
    """
    if context.catalog.table(plan.name) is not None:
        raise CatalogError(f"table {plan.name!r} exists already")
    if not may_create(context, "view", plan):
        return DONE
    refuse_reserved(plan.name)
    if parse(plan.sql).parameters:
        raise BindError(f"view {plan.name}: its query cannot have parameters")
    view = ViewDef(plan.name, plan.sql, plan.columns)
    context.require_writes().put_object("view", view.name, view)
    context.refresh()
    columns_of(context, view)
    return DONE


def columns_of(context: Context, view: ViewDef) -> list[tuple[str, str]]:
    """Return name and type of each column of a view."""
    from tarsdb.engine.arrow import sql_type_of

    plan: Query = bind(parse(f"SELECT * FROM {quoted(view.name)} LIMIT 0"), context.catalog)  # type: ignore[assignment]
    answer = run(context, plan)
    schema = answer.arrow().schema
    return [
        (name, str(answer.types[i] or sql_type_of(schema.field(i).type)))
        for i, name in enumerate(answer.names)
    ]
