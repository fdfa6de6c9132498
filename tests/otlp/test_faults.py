"""What fails between an SDK and the database: after the SDK's own retries all is stored, exactly once."""

import time
from collections.abc import Iterator

import pytest

from otlp.conftest import Otlp
from otlp.sdks import RECORDED, SDKS, add_types, exporting, stored
from support.mortal import Mortal
from support.processes import Postgres, eventually, function, query, start_function
from support.proxy import Proxy

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("sdk", SDKS), pytest.mark.parametrize("signal", RECORDED)]


@pytest.fixture(scope="module")
def url(postgres: Postgres) -> str:
    url = postgres.clone()
    add_types(url)
    return url


@pytest.fixture
def between(url: str) -> Iterator[tuple[Otlp, Proxy]]:
    """A running function, and a proxy before it."""
    with function("ingest_otlp", url) as server, Proxy(server.url) as proxy:
        yield Otlp(server, url), proxy


def test_lost_answer(between: tuple[Otlp, Proxy], sdk: str, signal: str) -> None:
    """The records are stored, and sent again. Both SDKs repeat a lost request at once, so two answers are lost."""
    otlp, proxy = between
    user = otlp.user()
    proxy.answer_next(None, None)
    with exporting(sdk, signal, proxy.url, user):
        eventually(lambda: stored(otlp, user) == RECORDED[signal], 10)
    assert proxy.unused_answers == 0
    assert stored(otlp, user) == RECORDED[signal]


def test_gateway_that_is_away(between: tuple[Otlp, Proxy], sdk: str, signal: str) -> None:
    otlp, proxy = between
    user = otlp.user()
    unavailable = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
    proxy.answer_next(unavailable, b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
    with exporting(sdk, signal, proxy.url, user):
        pass
    assert proxy.unused_answers == 0
    assert stored(otlp, user) == RECORDED[signal]


def test_killed_worker(url: str, sdk: str, signal: str) -> None:
    """While it waits for its commit, which the database then makes or not; gunicorn starts another one."""
    with Proxy(url) as database, function("ingest_otlp", database.url) as server:
        otlp = Otlp(server, url)
        user = otlp.user()
        database.hold()
        with exporting(sdk, signal, server.url, user):
            eventually(lambda: _connections(server.workers[0]), 10)
            time.sleep(0.3)
            server.kill(worker_only=True)
            database.release()
        assert stored(otlp, user) == RECORDED[signal]


def test_restarted_function(url: str, sdk: str, signal: str) -> None:
    """All of it is killed, and another one takes its port."""
    first = start_function("ingest_otlp", url)
    try:
        otlp = Otlp(first, url)
        user = otlp.user()
        first.kill()
        first.process.wait(10)
        with exporting(sdk, signal, first.url, user):
            time.sleep(1)
            second = start_function("ingest_otlp", url, first.port)
        second.kill()
        second.close()
        assert stored(otlp, user) == RECORDED[signal]
    finally:
        first.close()


def test_stopped_database(mortal: Mortal, sdk: str, signal: str) -> None:
    """For longer than the function waits."""
    url = mortal.clone()
    add_types(url)
    with function("ingest_otlp", url) as server:
        otlp = Otlp(server, url)
        user = otlp.user()
        mortal.stop()
        with exporting(sdk, signal, server.url, user):
            time.sleep(4.5)
            mortal.start()
        assert stored(otlp, user) == RECORDED[signal]
        assert query(url, "SELECT count(*) FROM metrics") == [[len(RECORDED[signal])]]


def _connections(worker: object) -> bool:
    """Whether the worker is connected to a client and to the database."""
    return sum(c.status == "ESTABLISHED" for c in worker.net_connections()) >= 2  # type: ignore[attr-defined]  # psutil
