"""Untrusted functions as WebAssembly: inspect a module, check a signature, call it with columns.

A guest imports nothing, sees only copies of its arguments in its own memory, and always runs
under limits of fuel, memory and time. docs/sandbox.md states the threat model,
docs/udf-abi.md the ABI.
Knows no SQL text, no catalog and no files. wasmtime is imported on first use.
"""

from tarsdb.udf_sandbox import capabilities
from tarsdb.udf_sandbox.figures import Figures
from tarsdb.udf_sandbox.functions.aggregates import AggregateFunction, StateTree, check_aggregate
from tarsdb.udf_sandbox.functions.function import SandboxedFunction, ScalarFunction
from tarsdb.udf_sandbox.functions.metric_functions import MetricFunction, check_metric
from tarsdb.udf_sandbox.functions.source_functions import Source, SourceFunction, check_source
from tarsdb.udf_sandbox.functions.table_functions import TableFunction
from tarsdb.udf_sandbox.guests import Lent
from tarsdb.udf_sandbox.limits import Budget, limits_from_options
from tarsdb.udf_sandbox.modules.module import (
    ModuleInfo,
    check_columnar,
    check_digest,
    check_signature,
    inspect_module,
    to_wasm,
)
from tarsdb.udf_sandbox.stopping import stoppable

CAPABILITIES = tuple(capabilities.SIGNATURES)
"""What a module may import, once it was granted."""

__all__ = [
    "CAPABILITIES",
    "AggregateFunction",
    "Budget",
    "Figures",
    "Lent",
    "MetricFunction",
    "ModuleInfo",
    "SandboxedFunction",
    "ScalarFunction",
    "Source",
    "SourceFunction",
    "StateTree",
    "TableFunction",
    "check_aggregate",
    "check_columnar",
    "check_digest",
    "check_metric",
    "check_signature",
    "check_source",
    "inspect_module",
    "limits_from_options",
    "stoppable",
    "to_wasm",
]
