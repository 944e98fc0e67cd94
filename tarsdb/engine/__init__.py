"""The engine: from a plan to an answer. The only package that sees all subsystems.

Life of a query
---------------
1. ``Connection.execute(sql, params)`` calls ``session.Session.execute``.
2. The session looks the text up in its plan cache. Unknown text goes through ``tarsdb.sql``:
   ``parse`` (a statement), ``bind`` (names and types, through the snapshot's catalog, then the
   rewrite rules) and gives a plan of ``tarsdb.sql.plan``.
3. A ``storage.Snapshot`` is one read transaction; a ``context.Context`` carries it together with
   the transaction's own write set, the parameters and the models and functions the plan may call.
4. ``executor.run`` answers a point read, a scan, a simple aggregate and nearest neighbours
   natively (``access`` picks an index, ``evaluate`` computes column by column, ``vector_search``
   searches exactly). Everything else goes to ``relational``: DuckDB over ``scans`` of the same
   snapshot, nearest neighbours inside it still answered by ``vector_search``.
5. INSERT, UPDATE and DELETE go through ``mutate``: ``derive`` computes defaults, generated
   columns (models run here, before any lock) and constraints, the rows enter the write set, and
   the session commits it: ``storage`` checks conflicts and constraints under the writer lock and
   makes one LMDB commit of it.
6. ``result.Result`` leaves as rows, NumPy, Arrow, pandas or Polars, copied out of the map.
"""
