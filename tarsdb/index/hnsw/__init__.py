"""Graph index: approximate nearest neighbours over int8 codes, as plain immutable arrays.

``build_graph`` makes a :class:`Graph` of vectors, ``Graph.search`` returns candidates that the
caller compares by their full vectors. Knows no storage, no transactions and no SQL.
"""

from tarsdb.index.hnsw.build import build_graph, estimated_bytes, searched_bytes
from tarsdb.index.hnsw.graph import Graph
from tarsdb.index.hnsw.options import GraphOptions

__all__ = ["Graph", "GraphOptions", "build_graph", "estimated_bytes", "searched_bytes"]
