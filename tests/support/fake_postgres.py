"""A PostgreSQL server that answers requests with any bytes: what a defect, a pooler or an attacker may send."""

import asyncio
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Self

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
PARAMETERS = {"server_version": "18.0", "client_encoding": "UTF8", "TimeZone": "UTC", "integer_datetimes": "on"}


class Last(bytes):
    """A reply after which the server closes the connection."""


Reply = Callable[[bytes], bytes]


def message(code: bytes, body: bytes = b"") -> bytes:
    """A message of the protocol: its code, its length and its body."""
    return code + struct.pack("!i", len(body) + 4) + body


def ready(state: bytes = b"I") -> bytes:
    """ReadyForQuery: I idle, T in a transaction, E in a failed one."""
    return message(b"Z", state)


def row(*values: bytes | None) -> bytes:
    """DataRow; None is NULL."""
    fields = (b"\xff\xff\xff\xff" if value is None else struct.pack("!i", len(value)) + value for value in values)
    return message(b"D", struct.pack("!h", len(values)) + b"".join(fields))


def complete(tag: str = "SELECT 1") -> bytes:
    """CommandComplete."""
    return message(b"C", tag.encode() + b"\0")


def error(state: str, text: str = "says the test", severity: str = "ERROR", **more: str) -> bytes:
    """ErrorResponse; its severity is also in another language, as a server with lc_messages sends it."""
    fields = {"S": "FEHLER", "V": severity, "C": state, "M": text, **more}
    return message(b"E", b"".join(f"{code}{value}".encode() + b"\0" for code, value in fields.items()) + b"\0")


PARSE_COMPLETE = message(b"1")
PARSED = PARSE_COMPLETE + message(b"2")  # and BindComplete
DONE, READY = complete(), ready()


def answer(value: bytes | None = None) -> bytes:
    """A whole, correct reply to Parse, Bind, Execute and Sync of a statement with one JSON value."""
    return PARSED + row(value) + DONE + READY


class FakePostgres:
    """A context manager that accepts any login and then gives a scripted reply to each request.

    A request is all messages up to and with a Sync or a simple Query. `reply` is either a sequence of replies, the
    last of which repeats, or a function of the request's bytes. `requests` has what was received.
    """

    def __init__(self, reply: Reply | Sequence[bytes]) -> None:
        self._reply = reply
        self._writers: set[asyncio.StreamWriter] = set()
        self.requests: list[bytes] = []
        self.connections = 0

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"postgresql://anyone@127.0.0.1:{self.port}/any?sslmode=disable"
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _finish(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if await self._log_in(reader, writer):
                self.connections += 1
                reply = b""
                while not isinstance(reply, Last):
                    request = await _request(reader)
                    # Whether it is on Citus is asked on each new connection.
                    is_first = b"public.locate_users" in request
                    reply = answer(b"false") if is_first else self._next(request)
                    # A statement that has a name is parsed once.
                    writer.write(reply if request[:1] == b"P" else reply.removeprefix(PARSE_COMPLETE))
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client closed the connection
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _log_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read the startup message, without TLS and without a password. Whether it was no cancel request."""
        while True:
            length, code = struct.unpack("!ii", await reader.readexactly(8))
            await reader.readexactly(length - 8)
            if code == CANCEL_REQUEST:
                return False
            if code not in (SSL_REQUEST, GSS_REQUEST):
                break
            writer.write(b"N")
        writer.write(message(b"R", struct.pack("!i", 0)))  # AuthenticationOk
        for name, value in PARAMETERS.items():
            writer.write(message(b"S", f"{name}\0{value}\0".encode()))
        writer.write(message(b"K", struct.pack("!ii", 4711, 4711)) + ready())
        return True

    def _next(self, request: bytes) -> bytes:
        self.requests.append(request)
        if callable(self._reply):
            return self._reply(request)
        return self._reply[min(len(self.requests), len(self._reply)) - 1]


async def _request(reader: asyncio.StreamReader) -> bytes:
    """All messages up to and with a Sync or a simple Query."""
    request = b""
    while True:
        head = await reader.readexactly(5)
        if head[:1] == b"X":
            raise asyncio.IncompleteReadError(b"", None)
        request += head + await reader.readexactly(int.from_bytes(head[1:]) - 4)
        if head[:1] in b"SQ":
            return request
