"""A TCP proxy that delays, holds back, cuts and answers: what networks and broken servers do."""

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine
from typing import Any, Self
from urllib.parse import urlsplit

from metrics_ingest.settings import read_database


class Proxy:
    """A context manager that listens on a port of its own and passes everything on to the server of `url`.

    `url` is a database's (postgresql://, reached by its Unix socket) or a function's (http://127.0.0.1:port);
    `self.url` is the same server through the proxy. `faults` counts the faults caused so far.
    """

    def __init__(self, url: str) -> None:
        self._target = url
        self._pairs: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._answers: deque[bytes | None] = deque()
        self.delay_s = 0.0
        self.reply_limit: int | None = None  # bytes of the next reply that pass before the connection is cut
        self.faults = 0

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._call(self._start())
        self.port = self._server.sockets[0].getsockname()[1]
        parts = urlsplit(self._target)
        self.url = (
            f"http://127.0.0.1:{self.port}{parts.path}"
            if parts.scheme == "http"
            else f"postgresql://postgres@127.0.0.1:{self.port}{parts.path}?sslmode=disable"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def hold(self) -> None:
        """Accept connections, but pass nothing on: a network that loses every packet."""
        self.faults += 1
        self._loop.call_soon_threadsafe(self._open.clear)

    def release(self, *, cut: bool = False) -> None:
        """Pass on again. With `cut`, what was held back is lost with its connections."""
        if cut:
            self.cut()
        self._loop.call_soon_threadsafe(self._open.set)

    def forget(self) -> None:
        """Pass nothing on for the existing connections, ever, as some firewalls do; new ones work."""
        self.faults += 1

        def replace_event() -> None:
            self._open.clear()
            self._open = asyncio.Event()
            self._open.set()

        self._loop.call_soon_threadsafe(replace_event)

    def cut(self) -> None:
        """Reset all connections."""
        self.faults += 1
        self._call(self._cut())

    def cut_next_reply(self, after: int) -> None:
        """Pass the next request on, and of its reply only `after` bytes; then close the connection."""
        self.faults += 1
        self.reply_limit = after

    def answer_next(self, *answers: bytes | None) -> None:
        """Answer the next connections, one each, with these bytes instead of passing their request on, and close.

        b"" closes without an answer; None passes the request on and loses the reply.
        """
        self.faults += len(answers)
        self._answers.extend(answers)

    @property
    def unused_answers(self) -> int:
        """How many of the answers of `answer_next` no connection has had yet."""
        return len(self._answers)

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _start(self) -> asyncio.Server:
        self._open.set()
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _finish(self) -> None:
        self._server.close()
        await self._cut()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _cut(self) -> None:
        for writer in self._pairs:
            writer.transport.abort()
        self._pairs.clear()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self._target)
        if parts.scheme == "http":
            return await asyncio.open_connection(parts.hostname, parts.port)
        database = read_database({"DATABASE_URL": self._target})
        return await asyncio.open_unix_connection(f"{database.host}/.s.PGSQL.{database.port}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_open = self._open
        if self._answers:
            answer = self._answers.popleft()
            if answer is not None:
                await self._answer(reader, writer, answer)
                return
            self.reply_limit = 0
        try:
            await is_open.wait()
            server_reader, server_writer = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        self._pairs |= {writer, server_writer}
        await asyncio.gather(
            self._pass_on(reader, server_writer, writer, is_open, is_reply=False),
            self._pass_on(server_reader, writer, server_writer, is_open, is_reply=True),
        )

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
        self._pairs.add(writer)
        try:
            await reader.read(65_536)
            writer.write(answer)
            if answer:
                writer.write_eof()
                while await reader.read(65_536):  # closing with unread bytes would reset what was answered
                    pass
        except OSError:
            pass
        finally:
            self._pairs.discard(writer)
            writer.close()

    async def _pass_on(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        other: asyncio.StreamWriter,
        is_open: asyncio.Event,
        *,
        is_reply: bool,
    ) -> None:
        try:
            while data := await source.read(65_536):
                await asyncio.sleep(self.delay_s)
                await is_open.wait()
                if is_reply and self.reply_limit is not None:
                    target.write(data[: self.reply_limit])
                    self.reply_limit = None
                    break
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            self._pairs -= {target, other}
            target.close()  # what was written is still sent
            if not is_reply:
                other.transport.abort()
