"""What the database and a worker say to each other: fixed headers, each with a payload of bytes.

The worker is not trusted: whoever reads a reply checks every number in it. Knows no WebAssembly.
"""

from __future__ import annotations

import enum
import socket
import struct
from collections.abc import Callable

from tarsdb.records import dataclass

MAX_TEXT_BYTES = 2_000


class Kind(enum.IntEnum):
    """What a request asks for."""

    COMPILE = 1  # payload: name of settings, 0, a module; the reply's payload is native code
    LOAD = 2  # payload: a LoadBody and three blobs; a descriptor of the memory comes along
    START = 3  # make a new instance, forgetting the one before
    CALL = 4  # payload: i32 arguments, then the export's name
    ANSWER = 5  # to ASKS; payload: an i32, or nothing: the guest is to end


class Status(enum.IntEnum):
    """How a request ended."""

    DONE = 0
    TRAP = 1  # text: the trap's name, a newline, the guest function
    MEMORY = 2  # the module's memory starts too large
    INVALID = 3  # text: why the module does not compile
    FAILED = 4  # text: what went wrong in the worker
    ASKS = 5  # not the end: the guest calls the host; text: a capability and its i32 arguments


_REQUEST = struct.Struct("<BBHIQdQ")
_REPLY = struct.Struct("<BBHiQQQ")


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its payload.

    Attributes
    ----------
    begins : bool
        Set the instance's fuel and time anew; otherwise it goes on with what is left.
    count : int
        Arguments of a call.
    fuel : int
    seconds : float
        From now to the deadline.
    size : int
        Bytes of payload that follow.
    """

    kind: Kind
    begins: bool = False
    count: int = 0
    fuel: int = 0
    seconds: float = 0.0
    size: int = 0

    def pack(self) -> bytes:
        """Return the header's bytes."""
        return _REQUEST.pack(
            self.kind, self.begins, 0, self.count, self.fuel, self.seconds, self.size
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply without its payload.

    Attributes
    ----------
    value : int
        What the export returned.
    fuel_left : int
    memory : int
        Bytes of the instance's memory now; of ASKS, of the module's own.
    text : str
    size : int
        Bytes of payload that follow.
    """

    status: Status
    value: int = 0
    fuel_left: int = 0
    memory: int = 0
    text: str = ""
    size: int = 0

    def pack(self) -> bytes:
        """Return the header's bytes and the text."""
        text = self.text.encode(errors="replace")[:MAX_TEXT_BYTES]
        numbers = (self.value, self.fuel_left, self.memory, self.size)
        return _REPLY.pack(self.status, 0, len(text), *numbers) + text


def read_exactly(channel: socket.socket, size: int) -> bytes:
    """Read ``size`` bytes.

    Raises
    ------
    EOFError
        The other side closed, or died.
    """
    parts = []
    while size:
        part = channel.recv(min(size, 1 << 20))
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_request(channel: socket.socket) -> Request:
    """Read a request; its payload is still to be read."""
    kind, begins, _, count, fuel, seconds, size = _REQUEST.unpack(
        read_exactly(channel, _REQUEST.size)
    )
    return Request(Kind(kind), bool(begins), count, fuel, seconds, size)


def read_reply(read: Callable[[int], bytes], most: int = 0) -> Reply:
    """Read a reply; its payload is still to be read.

    Parameters
    ----------
    read : callable
        Gives the next so many bytes.
    most : int
        Bytes of payload that may follow.

    Raises
    ------
    ValueError
        It is none: an unknown status, a text over the limit, or a payload of more than ``most``.
    """
    status, _, length, value, fuel_left, memory, size = _REPLY.unpack(read(_REPLY.size))
    if length > MAX_TEXT_BYTES or size > most:
        raise ValueError(f"a reply with {length} bytes of text and {size} of payload")
    text = read(length).decode(errors="replace") if length else ""
    return Reply(Status(status), value, fuel_left, memory, text, size)


_LOAD = struct.Struct("<QQIIII")


@dataclass(frozen=True, slots=True)
class LoadBody:
    """What a worker needs to serve one program.

    Attributes
    ----------
    memory_bytes : int
        The most the module's memory may take; its part of the shared file.
    driver_bytes : int
        The same of the driver's memory, 0 without one; it follows in the file.
    cpu_seconds : int
        After which the kernel ends the process.
    """

    memory_bytes: int
    driver_bytes: int
    cpu_seconds: int
    export: str
    module: bytes
    driver: bytes

    def pack(self) -> bytes:
        """Return the payload of a LOAD request."""
        export = self.export.encode()
        sizes = (len(export), len(self.module), len(self.driver))
        head = _LOAD.pack(self.memory_bytes, self.driver_bytes, self.cpu_seconds, *sizes)
        return b"".join((head, export, self.module, self.driver))

    @classmethod
    def unpack(cls, data: bytes) -> LoadBody:
        """Read the payload of a LOAD request."""
        memory, driver, cpu, *sizes = _LOAD.unpack_from(data)
        at, blobs = _LOAD.size, []
        for size in sizes:
            blobs.append(data[at : at + size])
            at += size
        return cls(memory, driver, cpu, blobs[0].decode(), blobs[1], blobs[2])
