"""Bytes on disk: one LMDB file of tables, indexes, blobs and catalog, read by snapshots.

``Environment`` is the open file, ``Snapshot`` what a statement reads, ``WriteSet`` what a
transaction wants to write, ``TableView`` one table of a snapshot with the transaction's own rows on
top. Knows no SQL, no kernels and no models; the other packages never see LMDB.
"""

from tarsdb.storage import background, inference, packed
from tarsdb.storage.blobs import put_blob
from tarsdb.storage.by_row import ByRow
from tarsdb.storage.catalog import CatalogView
from tarsdb.storage.check import check
from tarsdb.storage.checkpoints import (
    checkpoint_name,
    forget_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from tarsdb.storage.committer import CommitInfo
from tarsdb.storage.environment import Environment
from tarsdb.storage.gather import plain_runs
from tarsdb.storage.history import commit_log
from tarsdb.storage.index_parts import (
    IndexPart,
    known_parts,
    part_places,
    part_runs,
    read_parts,
    replace_parts,
)
from tarsdb.storage.keys import PROVISIONAL
from tarsdb.storage.leases import Lease
from tarsdb.storage.merge import merge, tables_of, wait_for_merge
from tarsdb.storage.revisit import Revisit
from tarsdb.storage.snapshot import Snapshot
from tarsdb.storage.state import GroupState
from tarsdb.storage.stats import table_stats
from tarsdb.storage.stopping import CheckStop, never
from tarsdb.storage.transaction import ReadTxn
from tarsdb.storage.vacuum import vacuum
from tarsdb.storage.view import Chunk, TableView
from tarsdb.storage.writes import WriteSet

__all__ = [
    "PROVISIONAL",
    "ByRow",
    "CatalogView",
    "CheckStop",
    "Chunk",
    "CommitInfo",
    "Environment",
    "GroupState",
    "IndexPart",
    "Lease",
    "ReadTxn",
    "Revisit",
    "Snapshot",
    "TableView",
    "WriteSet",
    "background",
    "check",
    "checkpoint_name",
    "commit_log",
    "forget_checkpoint",
    "inference",
    "known_parts",
    "load_checkpoint",
    "merge",
    "never",
    "packed",
    "part_places",
    "part_runs",
    "plain_runs",
    "put_blob",
    "read_parts",
    "replace_parts",
    "save_checkpoint",
    "table_stats",
    "tables_of",
    "vacuum",
    "wait_for_merge",
]
