"""WebAssembly modules as untrusted bytes: read their outline, refuse bombs, match signatures.

The section walk below is our own and runs before anything is compiled, because compiling a
hostile module can take minutes; whether the code is valid is then decided by wasmtime's
validator, which is linear. Nothing here compiles or runs a module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tarsdb.errors import UdfValidationError
from tarsdb.records import dataclass
from tarsdb.types import Physical, SqlType
from tarsdb.udf_sandbox.modules.sections import FuncType, Outline, read_outline

MAGIC = b"\x00asm"
MAX_TEXT_BYTES = 4 << 20
COLUMNAR_TYPE = FuncType(("i32", "i32"), ("i32",))
MAX_ARGUMENTS = 32

_SCALAR_TYPES: dict[Physical, str] = {
    Physical.BOOL: "i32", Physical.INT16: "i32", Physical.INT32: "i32", Physical.INT64: "i64",
    Physical.FLOAT32: "f32", Physical.FLOAT64: "f64",
}  # fmt: skip


@dataclass(frozen=True)
class ModuleInfo:
    """What a module declares.

    Attributes
    ----------
    sha256 : str
        Of the wasm bytes, hexadecimal.
    size : int
        Bytes.
    functions : dict of str to FuncType
        Exported functions.
    columnar : bool
        True when the module exports what the columnar ABI needs: ``tars_abi_v1``, ``memory``
        and ``tars_alloc``.
    resettable : bool
        True when it exports ``tars_reset``.
    stateless : bool
        True without imports, memories, tables, mutable globals and start function: an instance of
        it can be used again without remembering anything.
    memory_pages : int
        Pages of 64 KiB its memory starts with.
    """

    sha256: str
    size: int
    functions: dict[str, FuncType]
    columnar: bool
    resettable: bool
    stateless: bool
    memory_pages: int


def to_wasm(code: bytes | str) -> bytes:
    """Return wasm bytes for WebAssembly text or bytes.

    Parameters
    ----------
    code : bytes or str
        A ``(module ...)`` in the text format, or a binary module, which is returned unchanged.

    Raises
    ------
    UdfValidationError
        The text does not parse (the message holds line and column), or is too long.
    """
    raw = code.encode() if isinstance(code, str) else bytes(code)
    if raw.startswith(MAGIC):
        return raw
    if len(raw) > MAX_TEXT_BYTES:
        raise UdfValidationError(
            f"WebAssembly text of {len(raw)} bytes is larger than the {MAX_TEXT_BYTES} allowed"
        )
    if not raw.lstrip().startswith((b"(", b";;")):
        raise UdfValidationError(
            f"code of {len(raw)} bytes is neither a WebAssembly module nor its text form",
            hint="a module starts with the bytes 00 61 73 6d, its text with '(module'",
        )
    from tarsdb.udf_sandbox.in_process import wasmtime_backend

    return wasmtime_backend.assemble(raw)


def inspect_module(code: bytes, sha256: str | None = None, allow: Sequence[str] = ()) -> ModuleInfo:
    """Return what a module exports, after checking that it is valid and small enough to compile.

    Parameters
    ----------
    code : bytes
        A binary module; see :func:`to_wasm` for text.
    sha256 : str, optional
        The digest the caller expects.
    allow : sequence of str
        Capabilities it may import; see ``capabilities``.

    Raises
    ------
    UdfValidationError
        Malformed, over a size cap, importing anything else, or not of the expected digest.
    """
    digest = hashlib.sha256(code).hexdigest()
    if sha256 is not None:
        check_digest(digest, sha256)
    outline = read_outline(code)
    from tarsdb.udf_sandbox import capabilities
    from tarsdb.udf_sandbox.in_process import wasmtime_backend

    capabilities.check_imports(outline, allow)

    wasmtime_backend.validate(code)
    return _module_info(outline, digest, len(code))


def check_digest(actual: str, expected: str) -> None:
    """Raise UdfValidationError unless a module has the digest its declaration names."""
    if actual != expected.strip().lower():
        raise UdfValidationError(
            f"module has sha256 {actual}, the statement says {expected}",
            hint="the file changed, or the digest is that of another build",
        )


def _module_info(outline: Outline, digest: str, size: int) -> ModuleInfo:
    alloc = outline.exported_functions.get("tars_alloc")
    reset = outline.exported_functions.get("tars_reset")
    return ModuleInfo(
        sha256=digest,
        size=size,
        functions=outline.exported_functions,
        columnar="tars_abi_v1" in outline.exported_globals
        and "memory" in outline.exported_memories
        and alloc == FuncType(("i32",), ("i32",)),
        resettable=reset == FuncType((), ()),
        stateless=not (
            outline.memories
            or outline.tables
            or outline.mutable_globals
            or outline.has_start
            or outline.imports
        ),
        memory_pages=outline.memories[0] if outline.memories else 0,
    )


def scalar_type(sql_type: SqlType) -> str | None:
    """Return the wasm type a bare scalar export uses for a SQL type, or None if it has none."""
    return None if sql_type.is_vector else _SCALAR_TYPES.get(sql_type.physical)


def check_signature(
    info: ModuleInfo,
    export: str,
    arguments: Sequence[SqlType],
    returns: SqlType,
    strict: bool = True,
) -> str:
    """Check that an export can serve a SQL signature; return ``'scalar'`` or ``'columnar'``.

    ``strict`` is ``RETURNS NULL ON NULL INPUT``, which bare scalar exports need.

    Raises
    ------
    UdfValidationError
        Naming the export, its type and the type the signature asks for.
    """
    found = _exported(info, export)
    check_arity(export, arguments)
    if info.columnar and found == COLUMNAR_TYPE:
        return "columnar"
    wanted = _scalar_signature(arguments, returns)
    if wanted == found:
        if strict:
            return "scalar"
        raise UdfValidationError(
            f"function {export}: a bare scalar export cannot be CALLED ON NULL INPUT",
            hint="declare it STRICT, or use the columnar ABI",
        )
    signature = f"({', '.join(map(str, arguments))}) RETURNS {returns}"
    if wanted is None:
        raise _not_columnar(export, found, signature)
    raise UdfValidationError(
        f"export {export} has type {found}, {signature} needs {wanted}",
        hint="BOOLEAN, SMALLINT, INT and DATE are i32; BIGINT, TIME and TIMESTAMP i64; "
        "REAL f32; DOUBLE f64",
    )


def check_columnar(info: ModuleInfo, export: str, arguments: Sequence[SqlType]) -> None:
    """Check that an export can serve a table function, which needs the columnar interface.

    Raises
    ------
    UdfValidationError
        Naming the export, its type and the type it needs.
    """
    found = _exported(info, export)
    check_arity(export, arguments)
    if not info.columnar or found != COLUMNAR_TYPE:
        raise _not_columnar(export, found, "RETURNS TABLE")


def check_arity(export: str, arguments: Sequence[SqlType]) -> None:
    """Raise UdfValidationError for more arguments than functions may take."""
    if len(arguments) > MAX_ARGUMENTS:
        raise UdfValidationError(
            f"function {export} takes {len(arguments)} arguments, at most {MAX_ARGUMENTS} allowed"
        )


def _exported(info: ModuleInfo, export: str) -> FuncType:
    found = info.functions.get(export)
    if found is not None:
        return found
    names = sorted(name for name in info.functions if not name.startswith("tars_"))
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    raise UdfValidationError(
        f"module exports no function {export!r}", hint=f"its functions: {shown or 'none'}"
    )


def _not_columnar(export: str, found: FuncType, signature: str) -> UdfValidationError:
    return UdfValidationError(
        f"export {export} has type {found}, {signature} needs the columnar ABI: {COLUMNAR_TYPE}"
        " in a module that exports memory, tars_alloc and the global tars_abi_v1",
        hint="see docs/udf-abi.md",
    )


def _scalar_signature(arguments: Sequence[SqlType], returns: SqlType) -> FuncType | None:
    params = [scalar_type(argument) for argument in arguments]
    result = scalar_type(returns)
    if result is None:
        return None
    known = [param for param in params if param is not None]
    return FuncType(tuple(known), (result,)) if len(known) == len(params) else None
