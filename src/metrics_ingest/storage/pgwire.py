"""PostgreSQL's extended query protocol: statements with binary parameters, and the server's answers to them.

Parse, Bind, Execute and Sync are sent together and use the unnamed statement: one round trip, nothing that a
transaction pooler could lose, and no value becomes SQL (PostgreSQL manual: Frontend/Backend Protocol, Message Formats).
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from pg8000.exceptions import DatabaseError, InterfaceError
from pydantic_core import from_json


class Parameter(NamedTuple):
    """A value in the binary format of the type that `oid` names (pg_type)."""

    oid: int
    value: bytes


class Statement(NamedTuple):
    """The messages that run one SQL statement, and the codes of the messages that answer it."""

    messages: bytes
    answer: bytes


# OIDs of types, and of their arrays (pg_type).
JSON, TEXT, BOOL, UUID, TIMESTAMPTZ, FLOAT8 = 114, 25, 16, 2950, 1184, 701
TEXTS, BOOLS, UUIDS, TIMESTAMPTZS, FLOAT8S = 1009, 1000, 2951, 1185, 1022

BINARY = struct.pack("!hh", 1, 1)  # one format code, for all parameters
AS_TEXT = struct.pack("!h", 0)  # no format codes: results are text
EXECUTE = b"E" + struct.pack("!i", 9) + b"\0" + struct.pack("!i", 0)  # the unnamed portal, all rows
SYNC = b"S" + struct.pack("!i", 4)

# Codes of the server's messages.
PARSED, BOUND, ROW, COMPLETED, READY, ERROR = b"1", b"2", b"D", b"C", b"Z", b"E"
ASYNCHRONOUS = b"NSA"  # notices, parameter status and notifications may come at any time
IDLE, IN_TRANSACTION = b"I", b"T"  # what ReadyForQuery says about the transaction
MAX_MESSAGE_BYTES = 1 << 26  # far above any answer to a batch; a larger length means that the stream is corrupt


class Answer:
    """Decodes the server's answer to the statements of one exchange, in whatever pieces it arrives.

    `status` is the expected transaction status: IDLE, IN_TRANSACTION, or both. An answer that is not one row for each
    query, the completion of each statement and ReadyForQuery with that status raises InterfaceError: the connection is
    unusable.
    """

    def __init__(self, statements: Sequence[Statement], status: bytes) -> None:
        self._expected = b"".join([statement.answer for statement in statements]) + READY
        self._next = 0
        self._status = status
        self._rows: list[bytes | None] = []
        self.error: Exception | None = None  # what the server refused
        self.unread = bytearray()

    def feed(self, received: bytes) -> bool:
        """Take bytes from the server; return whether the answer is complete.

        Raise DatabaseError for a FATAL error, after which the server closes the connection.
        """
        unread = self.unread
        unread += received
        while len(unread) >= 5:
            length = int.from_bytes(unread[1:5])
            if not 4 <= length <= MAX_MESSAGE_BYTES:
                raise InterfaceError(f"a message from the server has the length {length}")
            if len(unread) <= length:
                break
            code, body = bytes(unread[:1]), bytes(unread[5 : length + 1])
            del unread[: length + 1]
            self._take(code, body)
            if code == READY:
                return True
        return False

    def values(self) -> list[Any]:
        """The value of each row, decoded from JSON. Raise DatabaseError if the server refused a statement."""
        if self.error is not None:
            raise self.error
        try:
            return [None if row is None else from_json(row) for row in self._rows]
        except ValueError as error:
            raise InterfaceError(f"a row from the server is not JSON: {error}") from error

    def _take(self, code: bytes, body: bytes) -> None:
        if code in ASYNCHRONOUS:
            return
        if code == ERROR and self.error is None:
            fields = body.decode(errors="replace").split("\0")
            # As pg8000 raises it, so that one translation serves both (driver.py).
            self.error = DatabaseError({field[0]: field[1:] for field in fields if field})
            if is_fatal(self.error):
                raise self.error
            self._expected, self._next = READY, 0  # the server skips the other statements
            self._status = self._status.replace(IN_TRANSACTION, b"E")
            return
        if code != self._expected[self._next : self._next + 1]:
            raise InterfaceError(f"unexpected message {code!r} from the server")
        self._next += 1
        if code == ROW:
            columns, length = struct.unpack_from("!hi", body) if len(body) >= 6 else (0, 0)
            if columns != 1 or len(body) != 6 + max(length, 0):
                raise InterfaceError("a row from the server has not exactly one column")
            self._rows.append(None if length < 0 else body[6:])
        elif code == READY and (len(body) != 1 or body not in self._status):
            raise InterfaceError(f"the server is in the transaction status {body!r}")


def is_fatal(error: Exception) -> bool:
    """Whether a DatabaseError says that the server closes the connection."""
    (fields,) = error.args
    return fields.get("V", fields.get("S")) in ("FATAL", "PANIC")  # V is never translated, and is sent since 9.6


def query(sql: str, parameters: Sequence[Parameter] = ()) -> Statement:
    """A statement that returns exactly one row."""
    return Statement(_messages(sql, parameters), PARSED + BOUND + ROW + COMPLETED)


def command(sql: str) -> Statement:
    """A statement that returns no row."""
    return Statement(_messages(sql, ()), PARSED + BOUND + COMPLETED)


def request(statements: Sequence[Statement]) -> bytes:
    """The bytes that send the statements and have them answered. Without BEGIN they are one transaction."""
    return b"".join([*(statement.messages for statement in statements), SYNC])


def _messages(sql: str, parameters: Sequence[Parameter]) -> bytes:
    """Parse, Bind and Execute."""
    count = struct.pack("!h", len(parameters))
    oids = struct.pack(f"!{len(parameters)}i", *(parameter.oid for parameter in parameters))
    values = b"".join([struct.pack("!i", len(value)) + value for _, value in parameters])
    parse = b"\0" + sql.encode() + b"\0" + count + oids
    bind = b"".join((b"\0\0", BINARY, count, values, AS_TEXT))
    lengths = struct.pack("!i", len(parse) + 4), struct.pack("!i", len(bind) + 4)
    return b"".join((b"P", lengths[0], parse, b"B", lengths[1], bind, EXECUTE))


def json(text: bytes) -> Parameter:
    """A JSON document, whose binary format is its text."""
    return Parameter(JSON, text)


def uuids(values: Sequence[bytes]) -> Parameter:
    """An array of UUIDs of 16 bytes each."""
    return Parameter(UUIDS, _array_header(UUID, len(values)) + _with_lengths(b"\0\0\0\x10", values))


def timestamps(values: Sequence[int]) -> Parameter:
    """An array of timestamptz, in microseconds since 2000-01-01 UTC."""
    return Parameter(TIMESTAMPTZS, _array_header(TIMESTAMPTZ, len(values)) + _numbers("q", values))


def floats(values: Sequence[float]) -> Parameter:
    """An array of float8."""
    return Parameter(FLOAT8S, _array_header(FLOAT8, len(values)) + _numbers("d", values))


def booleans(values: Sequence[bool]) -> Parameter:
    """An array of booleans."""
    elements = [b"\0\1"[value : value + 1] for value in values]
    return Parameter(BOOLS, _array_header(BOOL, len(values)) + _with_lengths(b"\0\0\0\1", elements))


def texts(values: Sequence[str]) -> Parameter:
    """An array of text. The encoding of each is cached, because the same few metric types come again and again."""
    return Parameter(TEXTS, _array_header(TEXT, len(values)) + b"".join(map(_text_with_length, values)))


def _array_header(oid: int, count: int) -> bytes:
    """The header of an array of one dimension, counted from 1, without NULLs. Each element follows after its length."""
    return struct.pack("!5i", 1, 0, oid, count, 1) if count else struct.pack("!3i", 0, 0, oid)


def _with_lengths(length: bytes, elements: Sequence[bytes]) -> bytes:
    """Elements of one length, each after that length."""
    return length + length.join(elements) if elements else b""


def _numbers(code: str, values: Sequence[float]) -> bytes:
    """Numbers of eight bytes, each after its length; `code` as in the module struct."""
    pairs: list[float] = [8] * (2 * len(values))
    pairs[1::2] = values
    return struct.pack("!" + f"i{code}" * len(values), *pairs)


@lru_cache(maxsize=1024)
def _text_with_length(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("!i", len(encoded)) + encoded
