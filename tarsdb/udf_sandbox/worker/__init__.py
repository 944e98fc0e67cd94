"""The worker backend: functions in confined child processes that can be killed.

``main`` is the program of such a process; it imports ``messages``, ``confinement``, ``memories``
and wasmtime, and nothing else of ours. The database's side is ``process`` (one child), ``pool``
(those that wait for work) and ``backend``. Only the database's side knows columns and SQL types.
"""
