"""PostgreSQL's extended query protocol: statements with binary parameters, and the server's answers to them.

Parse, Bind, Execute and Sync are sent together: one round trip, and no value becomes SQL (PostgreSQL manual:
Frontend/Backend Protocol, Message Formats). A statement that has a name is parsed once a connection.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from pg8000.exceptions import DatabaseError, InterfaceError
from pydantic_core import from_json


class Statement(NamedTuple):
    """The messages that run one SQL statement, and the codes of the messages that answer it."""

    messages: bytes
    answer: bytes


TEXT, BOOL, UUID, TIMESTAMPTZ, FLOAT8 = 25, 16, 2950, 1184, 701  # OIDs of types (pg_type)
BINARY = struct.pack("!hh", 1, 1)  # one format code, for all parameters
NONE = struct.pack("!h", 0)  # no types of parameters: the called function's; no formats of results: text
EXECUTE = b"E" + struct.pack("!i", 9) + b"\0" + struct.pack("!i", 0)  # the unnamed portal, all rows
SYNC = b"S" + struct.pack("!i", 4)

# Codes of the server's messages.
PARSED, BOUND, ROW, COMPLETED, READY, ERROR = b"1", b"2", b"D", b"C", b"Z", b"E"
ASYNCHRONOUS = b"NSA"  # notices, parameter status and notifications may come at any time
IDLE, IN_TRANSACTION = b"I", b"T"  # what ReadyForQuery says about the transaction
# The whole answer to a named statement that returns NULL, as storing metrics mostly does: BindComplete, DataRow,
# CommandComplete and ReadyForQuery. Comparing it takes 7 µs less than reading it.
NO_FAULTS = b"2\0\0\0\4D\0\0\0\n\0\1\xff\xff\xff\xffC\0\0\0\rSELECT 1\0Z\0\0\0\5I"
USUAL = BOUND + ROW + COMPLETED + READY
MAX_MESSAGE_BYTES = 1 << 26  # far above any answer to a batch; a larger length means that the stream is corrupt


class Answer:
    """Decodes the server's answer to the statements of one exchange, in whatever pieces it arrives.

    `status` is the expected transaction status: IDLE, IN_TRANSACTION, or both. An answer other than one row for each
    query, each statement's completion and ReadyForQuery raises InterfaceError: the connection is unusable.
    """

    def __init__(self, statements: Sequence[Statement], status: bytes) -> None:
        self._expected = b"".join([statement.answer for statement in statements]) + READY
        self._status = status
        self._rows: list[bytes | None] = []
        self.error: Exception | None = None  # what the server refused
        self.unread = bytearray()

    def feed(self, received: bytes) -> bool:
        """Take bytes from the server; return whether the answer is complete. Raise DatabaseError if it is FATAL."""
        unread = self.unread
        if received == NO_FAULTS and not unread and self._expected == USUAL and self._status == IDLE:
            self._rows.append(None)
            return True
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
            self._expected = READY  # the server skips the other statements
            self._status = self._status.replace(IN_TRANSACTION, b"E")
            return
        if code != self._expected[:1]:
            raise InterfaceError(f"unexpected message {code!r} from the server")
        self._expected = self._expected[1:]
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


def one_row(sql: str, parameters: Sequence[bytes] = (), name: bytes = b"", *, parse: bool = True) -> Statement:
    """A statement that returns exactly one row. The parameters are in the binary formats of their types.

    PostgreSQL keeps a statement with a name until the connection ends. `parse` is false when it has it already.
    """
    return Statement(_messages(sql, parameters, name, parse), (PARSED if parse else b"") + BOUND + ROW + COMPLETED)


def no_rows(sql: str) -> Statement:
    """A statement that returns no row."""
    return Statement(_messages(sql, ()), PARSED + BOUND + COMPLETED)


def request(statements: Sequence[Statement]) -> bytes:
    """The bytes that send the statements and have them answered. Without BEGIN they are one transaction."""
    return b"".join([*(statement.messages for statement in statements), SYNC])


def _messages(sql: str, parameters: Sequence[bytes], name: bytes = b"", parse: bool = True) -> bytes:
    """Parse, Bind and Execute."""
    values = [part for value in parameters for part in (struct.pack("!i", len(value)), value)]
    bind = b"".join((b"\0", name, b"\0", BINARY, struct.pack("!h", len(parameters)), *values, NONE))
    messages = [b"B", struct.pack("!i", len(bind) + 4), bind, EXECUTE]
    if parse:
        text = b"".join((name, b"\0", sql.encode(), b"\0", NONE))
        messages[:0] = b"P", struct.pack("!i", len(text) + 4), text
    return b"".join(messages)


def uuids(values: Sequence[bytes]) -> bytes:
    """An array of UUIDs of 16 bytes each."""
    return _array_header(UUID, len(values)) + b"\0\0\0\x10".join((b"", *values))


def texts(values: Sequence[str]) -> bytes:
    """An array of text. The encoding of each is cached, because the same few metric types come again and again."""
    return _array_header(TEXT, len(values)) + b"".join(map(_text_with_length, values))


def _array_header(oid: int, count: int) -> bytes:
    """The header of an array of one dimension, counted from 1, without NULLs. Each element follows after its length."""
    return struct.pack("!5i", 1, 0, oid, count, 1)


def _numbers(oid: int, code: str, values: Sequence[float]) -> bytes:
    """An array of numbers, each after its length in bytes; `code` as in the module struct."""
    pairs: list[float] = [struct.calcsize(f"!{code}")] * (2 * len(values))
    pairs[1::2] = values
    return _array_header(oid, len(values)) + struct.pack("!" + f"i{code}" * len(values), *pairs)


timestamps = partial(_numbers, TIMESTAMPTZ, "q")  # in microseconds since 2000-01-01 UTC
floats = partial(_numbers, FLOAT8, "d")
booleans = partial(_numbers, BOOL, "?")


@lru_cache(maxsize=1024)
def _text_with_length(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("!i", len(encoded)) + encoded
