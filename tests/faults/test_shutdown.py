"""SIGTERM: running requests are answered after their commit, new ones are not accepted, and it takes at most 10 s."""

import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest

from faults.load import Answer, Load, locked, post_all
from support.metrics import metric, register
from support.mortal import Mortal
from support.processes import Server, eventually, query

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_requests_under_way_are_answered_after_their_commit(mortal: Mortal, serve: Serve, workers: str) -> None:
    url = mortal.clone()
    server = serve("ingest", url, WORKERS=workers)
    user_id = register(url)
    with locked(url) as unlock:

        def end() -> None:
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: refuses_connections(server), 3)
            unlock()

        began = time.monotonic()
        answers = post_all(server.port, "/ingest/", [metric(user_id) for _ in range(20)], end)
    assert [answer.status for answer in answers] == [200] * 20
    assert query(url, "SELECT count(*) FROM metrics WHERE user_id = :u", u=user_id) == [[20]]
    assert server.process.wait(10) == 0
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("workers", ["1", "2"])
def test_under_load_nothing_acknowledged_is_missing(mortal: Mortal, serve: Serve, workers: str) -> None:
    url = mortal.clone()
    server = serve("ingest", url, WORKERS=workers)
    with Load(server.port, url, give_up=True) as load:
        time.sleep(1)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 10
        time.sleep(0.2)
    load.check()
    assert load.statuses.keys() == {200}
    assert load.refused_connections
    assert "Traceback" not in server.log


def test_hanging_database_and_stuck_clients_do_not_delay_the_end(mortal: Mortal, serve: Serve) -> None:
    """Waiting requests get 503 before the process ends, although WRITE_TIMEOUT_S would let them wait for a minute."""
    url = mortal.clone()
    server = serve("ingest", url, WRITE_TIMEOUT_S="60")
    user_id = register(url)
    assert post_all(server.port, "/ingest/", [metric(user_id)])[0].status == 200
    answers: list[Answer] = []
    mortal.pause()
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as stuck:
            stuck.sendall(b"POST /ingest/ HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n{")
            bodies = [metric(user_id) for _ in range(20)]
            waiting = threading.Thread(target=lambda: answers.extend(post_all(server.port, "/ingest/", bodies)))
            waiting.start()
            time.sleep(1)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(15) == 0
            assert time.monotonic() - began < 10
            waiting.join(5)
    finally:
        mortal.resume()
    assert [(answer.status, answer.code) for answer in answers] == [(503, "store_unavailable")] * 20


def refuses_connections(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), 1).close()
    except ConnectionRefusedError:
        return True
    return False
