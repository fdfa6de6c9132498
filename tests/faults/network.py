"""A TCP proxy between a function and its database, which can be told to do what networks do."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self
from urllib.parse import urlsplit

from metrics_ingest.settings import read_database


class Proxy:
    """Listens on a port of its own and passes everything on to the database of `url`, if it is not told otherwise.

    A context manager. `faults` counts what it has done.
    """

    def __init__(self, url: str) -> None:
        database = read_database({"DATABASE_URL": url})
        self._path = f"{database.host}/.s.PGSQL.{database.port}"
        self._name = urlsplit(url).path
        self._pairs: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self.delay_s = 0.0
        self.reply_limit: int | None = None  # bytes of the next reply that pass before the connection is cut
        self.faults = 0

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._call(self._start())
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}{self._name}?sslmode=disable"
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def hold(self) -> None:
        """Pass nothing on, and accept connections all the same: what a network does that loses every packet."""
        self.faults += 1
        self._loop.call_soon_threadsafe(self._open.clear)

    def release(self, *, cut: bool = False) -> None:
        """Pass on again; cut, what was held is lost with its connections."""
        if cut:
            self.cut()
        self._loop.call_soon_threadsafe(self._open.set)

    def forget(self) -> None:
        """Pass nothing on for the connections there are, ever, as some firewalls do; new ones are as good as before."""
        self.faults += 1

        def begin_anew() -> None:
            self._open.clear()
            self._open = asyncio.Event()
            self._open.set()

        self._loop.call_soon_threadsafe(begin_anew)

    def cut(self) -> None:
        """Reset all connections."""
        self.faults += 1
        self._call(self._cut())

    def cut_next_reply(self, after: int) -> None:
        """Pass on the next request, but of the reply only so many bytes, and then cut the connection."""
        self.faults += 1
        self.reply_limit = after

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

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_open = self._open
        try:
            await is_open.wait()
            database_reader, database_writer = await asyncio.open_unix_connection(self._path)
        except OSError:
            writer.transport.abort()
            return
        self._pairs |= {writer, database_writer}
        await asyncio.gather(
            self._pass_on(reader, database_writer, writer, is_open, is_reply=False),
            self._pass_on(database_reader, writer, database_writer, is_open, is_reply=True),
        )

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
            target.close()  # what was written still goes out
            if not is_reply:
                other.transport.abort()
