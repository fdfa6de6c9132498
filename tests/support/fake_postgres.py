"""A fake PostgreSQL server, which logs everyone in and then says what the test wants."""

import socket
import struct
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress

from metrics_ingest.settings import Database, read_database

SYNC = b"S\0\0\0\4"


def message(code: bytes, body: bytes = b"") -> bytes:
    """A message of the server."""
    return code + struct.pack("!i", len(body) + 4) + body


def row(value: bytes | None) -> bytes:
    """A DataRow of one column."""
    return message(b"D", struct.pack("!hi", 1, -1 if value is None else len(value)) + (value or b""))


def error(severity: str, sqlstate: str, **fields: str) -> bytes:
    """An ErrorResponse."""
    every = {"S": "FEHLER", "V": severity, "C": sqlstate, "M": "says the test", **fields}
    return message(b"E", "".join(f"{name}{value}\0" for name, value in every.items()).encode() + b"\0")


PARSED = message(b"1") + message(b"2")
DONE = message(b"C", b"SELECT 1\0")
READY = message(b"Z", b"I")


class FakePostgres:
    """Gives the answers in turn, one for each Sync, on whatever connection it comes. A context manager."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._answers = iter(answers)
        self.connections = 0

    def __enter__(self) -> Database:
        """Start it; return how to connect to it."""
        self._directory = tempfile.TemporaryDirectory()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{self._directory.name}/.s.PGSQL.5432")
        self._listener.listen()
        threading.Thread(target=self._accept).start()
        return read_database({"DATABASE_URL": f"postgresql://nobody@/none?host={self._directory.name}"})

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._directory.cleanup()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                connection = self._listener.accept()[0]
                self.connections += 1
                threading.Thread(target=self._serve, args=[connection]).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65_536)
            connection.sendall(message(b"R", bytes(4)) + READY)
            received = b""
            while data := connection.recv(65_536):
                received += data
                if received.endswith(SYNC):
                    received = b""
                    connection.sendall(next(self._answers))
