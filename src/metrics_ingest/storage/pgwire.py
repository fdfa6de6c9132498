"""What PostgreSQL is told: the extended query protocol, with values in their binary format.

Parse, Bind, Execute and Sync go out together, with the unnamed statement: one round trip, nothing that a transaction
pooler could lose, and no value ever becomes SQL. (PostgreSQL manual: Frontend/Backend Protocol, Message Formats.)
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple


class Parameter(NamedTuple):
    """A value in the binary format of the type that `oid` names (pg_type)."""

    oid: int
    value: bytes


JSON, TEXT = 114, 25
BOOL, BOOLS = 16, 1000
UUID, UUIDS = 2950, 2951
TIMESTAMPTZ, TIMESTAMPTZS = 1184, 1185
FLOAT8, FLOAT8S = 701, 1022
TEXTS = 1009

BINARY = struct.pack("!hh", 1, 1)  # one format code, for all parameters
AS_TEXT = struct.pack("!h", 0)  # no format codes: results are text
EXECUTE = b"E" + struct.pack("!i", 9) + b"\0" + struct.pack("!i", 0)  # the unnamed portal, all rows
SYNC = b"S" + struct.pack("!i", 4)


def statement(sql: str, parameters: Sequence[Parameter] = ()) -> bytes:
    """Parse, Bind and Execute. A SYNC behind the last one has them answered."""
    count = struct.pack("!h", len(parameters))
    oids = struct.pack(f"!{len(parameters)}i", *(parameter.oid for parameter in parameters))
    values = b"".join([struct.pack("!i", len(value)) + value for _, value in parameters])
    parse = b"".join((b"\0", sql.encode(), b"\0", count, oids))
    bind = b"".join((b"\0\0", BINARY, count, values, AS_TEXT))
    return b"".join((_head(b"P", parse), parse, _head(b"B", bind), bind, EXECUTE))


def json(text: bytes) -> Parameter:
    """A document; its binary format is its text."""
    return Parameter(JSON, text)


def uuids(values: Sequence[bytes]) -> Parameter:
    """An array of UUIDs of 16 bytes each."""
    return Parameter(UUIDS, _array(UUID, len(values)) + _joined(b"\0\0\0\x10", values))


def timestamps(values: Sequence[int]) -> Parameter:
    """An array of timestamptz, in microseconds since 2000-01-01 UTC."""
    return Parameter(TIMESTAMPTZS, _array(TIMESTAMPTZ, len(values)) + _numbers("q", values))


def floats(values: Sequence[float]) -> Parameter:
    """An array of float8."""
    return Parameter(FLOAT8S, _array(FLOAT8, len(values)) + _numbers("d", values))


def booleans(values: Sequence[bool]) -> Parameter:
    """An array of booleans."""
    return Parameter(BOOLS, _array(BOOL, len(values)) + _joined(b"\0\0\0\1", [b"\0\1"[v : v + 1] for v in values]))


def texts(values: Sequence[str]) -> Parameter:
    """An array of text; few different ones are expected."""
    return Parameter(TEXTS, _array(TEXT, len(values)) + b"".join(map(_text, values)))


def _head(code: bytes, body: bytes) -> bytes:
    return code + struct.pack("!i", len(body) + 4)


def _array(oid: int, count: int) -> bytes:
    """Of one dimension, counted from 1, without NULLs; what follows is each element behind its length."""
    return struct.pack("!5i", 1, 0, oid, count, 1) if count else struct.pack("!3i", 0, 0, oid)


def _joined(length: bytes, elements: Sequence[bytes]) -> bytes:
    return length + length.join(elements) if elements else b""


def _numbers(code: str, values: Sequence[float]) -> bytes:
    """Numbers of eight bytes."""
    pairs: list[float] = [8] * (2 * len(values))
    pairs[1::2] = values
    return struct.pack("!" + f"i{code}" * len(values), *pairs)


@lru_cache(maxsize=1024)
def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("!i", len(encoded)) + encoded
