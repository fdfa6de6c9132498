"""Replies of the database that break off or make no sense: the statement is sent again, and no client notices."""

from collections.abc import Callable

import pytest
import requests

from support.fake_postgres import FakePostgres, Last, answer, error
from support.metrics import metric
from support.processes import Server

USER = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
Serve = Callable[..., Server]
BROKEN = {
    "no reply": Last(),
    "cut off in a message": Last(answer()[:20]),
    "cut off between messages": Last(answer()[:10]),
    "shutdown": Last(error("57P01", "terminating connection due to administrator command", "FATAL")),
}


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN)
def test_statement_whose_reply_is_broken_is_sent_again_unchanged(serve: Serve, reply: bytes) -> None:
    with FakePostgres([reply, answer()]) as database:
        server = serve("ingest", database.url, WRITE_LANES="1")
        assert requests.post(server.url, json=metric(USER), timeout=20).status_code == 200
        assert database.connections == 2
        first, second = database.requests
        assert first == second
    assert "Traceback" not in server.log


def test_database_that_never_makes_sense_is_unavailable_in_time(serve: Serve) -> None:
    with FakePostgres([Last(b"HTTP/1.1 400 Bad Request\r\n\r\n")]) as database:
        server = serve("ingest", database.url, WRITE_TIMEOUT_S="1")
        reply = requests.post(server.url, json=metric(USER), timeout=20)
        assert (reply.status_code, reply.json()["code"]) == (503, "store_unavailable")
        assert reply.elapsed.total_seconds() < 2
        assert len(database.requests) > 1
