"""Well-behaved clients: each sends one metric after the other, and the same one again until it is acknowledged."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Self

from support.metrics import metric, register
from support.processes import connected, query


@dataclass
class Answer:
    """An HTTP answer, and how long it took."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def code(self) -> str:
        """The problem's code."""
        return str(json.loads(self.body)["code"])


class Client:
    """One HTTP/1.1 connection, kept open, and made anew when it breaks."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        """Send JSON. Raise OSError when there is no complete answer."""
        data = json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(data)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        began = time.monotonic()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write("\r\n".join([*lines, "", ""]).encode() + data)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            content = await reader.readexactly(int(fields["content-length"]))
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            raise ConnectionError(str(error)) from error
        except BaseException:
            self.close()
            raise
        if fields.get("connection") == "close":
            self.close()
        return Answer(int(head[0].split()[1]), fields, content, time.monotonic() - began)

    def close(self) -> None:
        """Drop the connection."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].transport.abort()


@dataclass
class Load:
    """A context manager: `clients` that send to a function from a thread, and the answers that they got.

    A metric is known by its value, which no other has. Every other request gives its metrics ids; the rest leave them
    to the function, so that an id assigned anew for a repeated attempt shows as a doubled metric.
    """

    port: int
    database_url: str
    clients: int = 30
    batch: int = 0  # metrics a request; 0: single ones to /ingest/
    strict: bool = False
    give_up: bool = False  # do not send again what was not acknowledged

    sent: dict[float, str | None] = field(default_factory=dict)  # metric_id by value; None: left to the function
    acknowledged: set[float] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    refused_connections: int = 0
    successes: list[float] = field(default_factory=list)  # when
    slowest: float = 0.0  # of the successes, in seconds
    rejections: list[tuple[str, float]] = field(default_factory=list)  # code and seconds

    def __enter__(self) -> Self:
        self._user = register(self.database_url)
        self._numbers = count()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, timeout_s: float = 90) -> None:
        """Begin no new request, and wait until every begun one is acknowledged."""
        self._stop.set()
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"requests hang: {self.statuses}"

    async def _run(self) -> None:
        await asyncio.gather(*(self._work(Client(self.port)) for _ in range(self.clients)))

    async def _work(self, client: Client) -> None:
        while not self._stop.is_set():
            numbers = [next(self._numbers) for _ in range(self.batch or 1)]
            metrics = [metric(self._user, value=number / 1024) for number in numbers]
            headers = {"Prefer": "handling=strict"} if self.strict and self.batch else {}
            if numbers[0] // len(numbers) % 2:
                headers["Idempotency-Key"] = f"load-{numbers[0]}"
                for each in metrics:
                    del each["metric_id"]
            self.sent |= {each["value"]: each.get("metric_id") for each in metrics}
            sendings = 0
            while not await self._send(client, metrics, headers, sendings):
                sendings += 1
                if self.give_up:
                    break
                await asyncio.sleep(0.05)
            if self.give_up and self._stop.is_set():
                break
        client.close()

    async def _send(self, client: Client, metrics: list[Any], headers: dict[str, str], sendings: int) -> bool:
        """Send once. Return whether the answer is final: also a wrong one is, because the test has failed then."""
        try:
            if self.batch:
                answer = await client.post("/ingest_batch/", metrics, **headers)
            else:
                answer = await client.post("/ingest/", metrics[0], **headers)
        except OSError:
            self.refused_connections += 1
            return False
        self.statuses[answer.status] += 1
        if answer.status == 200:
            self.slowest = max(self.slowest, answer.seconds)
            self.acknowledged.update(each["value"] for each in metrics)
            self.successes.append(time.monotonic())
            if self.batch:
                report = json.loads(answer.body)
                if report["stored"] + report["duplicates"] != len(metrics) or (not sendings and report["duplicates"]):
                    self.wrong.append(f"{answer.body!r}")
            elif not sendings and "idempotent-replayed" in answer.headers:
                self.wrong.append("a metric that was sent once is said to be a replay")
            return True
        if answer.status == 503 and "retry-after" in answer.headers:
            self.rejections.append((answer.code, answer.seconds))
            return False
        self.wrong.append(f"{answer.status} {answer.headers} {answer.body!r}")
        return True

    def check(self) -> None:
        """Compare the database with the answers: no acknowledged metric is lost, none is stored twice or changed."""
        rows = query(
            self.database_url, "SELECT value, metric_id::text FROM metrics WHERE user_id = :user", user=self._user
        )
        stored = Counter(value for value, _ in rows)
        lost = len(self.acknowledged - stored.keys())
        doubled = sum(number - 1 for number in stored.values())
        assert (lost, doubled) == (0, 0), f"lost {lost}, doubled {doubled} of {len(self.acknowledged)} acknowledged"
        assert stored.keys() <= self.sent.keys()
        assert [row for row in rows if self.sent[row[0]] not in (None, row[1])] == []
        assert not self.wrong, self.wrong[:3]

    def check_all_stored(self) -> None:
        """Check that every metric that was sent is acknowledged, and stored once."""
        self.check()
        assert self.sent
        assert self.sent.keys() == self.acknowledged

    def succeeded_since(self, moment: float) -> bool:
        """Whether there was a success after that moment."""
        return bool(self.successes) and self.successes[-1] > moment

    def was_refused_since(self, refused_connections: int) -> bool:
        """Whether a connection broke or was refused since the count had that value."""
        return self.refused_connections > refused_connections

    def silence_after(self, moment: float) -> float:
        """How many seconds passed from that moment to the next success."""
        return min(at for at in self.successes if at >= moment) - moment


def post_all(
    port: int, path: str, bodies: Sequence[Any], meanwhile: Callable[[], object] | None = None
) -> list[Answer]:
    """Send each body on its own connection, all at once; half a second later call `meanwhile`."""

    async def run() -> list[Answer]:
        clients = [Client(port) for _ in bodies]
        answers = [asyncio.create_task(client.post(path, body)) for client, body in zip(clients, bodies, strict=True)]
        if meanwhile:
            await asyncio.sleep(0.5)
            await asyncio.to_thread(meanwhile)
        try:
            return await asyncio.gather(*answers)
        finally:
            for client in clients:
                client.close()

    return asyncio.run(run())


@contextmanager
def locked(database_url: str) -> Iterator[Callable[[], None]]:
    """Lock the table metrics against writing until the yielded function is called."""
    with connected(database_url) as connection:
        connection.run("BEGIN")
        connection.run("LOCK TABLE metrics IN EXCLUSIVE MODE")
        yield lambda: connection.run("ROLLBACK") and None
