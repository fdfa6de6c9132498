"""A database that says random things: each request gets a reply of the contract, and in time."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st

from fuzz.payloads import CHANGES, examples, mutated
from metrics_ingest.errors import CODES
from support.fake_postgres import DONE, PARSED, READY, FakePostgres, Last, answer, complete, error, message, ready, row
from support.processes import Server, function

METRIC = {"user_id": str(uuid4()), "metric_type": "a", "value": 1, "timestamp": "2024-08-08T12:34:56Z"}
GOOD = answer()
VALUES = st.none() | st.binary(max_size=30) | st.sampled_from([
    b"null", b"[]", b"{}", b'[{"position": 1, "outcome": "duplicate"}]', b'[{"position": 7, "outcome": "duplicate"}]',
    b'[{"position": 1, "outcome": "unknown_user"}]', b'[{"position": 1, "outcome": "something"}]', b'[{"position": 1}]',
    b'[{"position": 1, "outcome": "value_out_of_range"}]', b'"\xff"',
])  # fmt: skip
PARTS = st.one_of(
    st.sampled_from(
        [PARSED, DONE, READY, ready(b"T"), ready(b"E"), message(b"s"), message(b"n"), complete("INSERT 0 1")]
    ),
    st.builds(row, VALUES),
    st.builds(lambda first, second: row(first, second), VALUES, VALUES),
    st.builds(error, st.sampled_from(["57P01", "40001", "22P02", "XX000", "26000", "?"]), st.text("aé", max_size=5)),
    st.builds(message, st.binary(min_size=1, max_size=1), st.binary(max_size=20)),
    st.binary(max_size=12),
)
SAID = st.one_of(
    st.lists(PARTS, max_size=6).map(b"".join),
    st.builds(
        lambda value, last: PARSED + row(value) + DONE + last, VALUES, st.sampled_from([READY, ready(b"T"), b""])
    ),
    st.builds(mutated, st.just(GOOD), CHANGES),
)


class Said:
    """What the database says to the next requests: each reply once, then a good one."""

    def __init__(self) -> None:
        self.replies: list[bytes] = []

    def __call__(self, request: bytes) -> bytes:
        return self.replies.pop(0) if self.replies else GOOD


@pytest.fixture(scope="module")
def said() -> Said:
    return Said()


@pytest.fixture(scope="module")
def server(said: Said) -> Iterator[Server]:
    with (
        FakePostgres(said) as database,
        function("ingest", database.url, WRITE_TIMEOUT_S="1", WRITE_LANES="1") as server,
    ):
        yield server
        assert server.process.poll() is None
        assert "Traceback" not in server.log


@examples(30)
@given(replies=st.lists(st.builds(lambda said, end: Last(said) if end else said, SAID, st.booleans()), max_size=3))
@example(replies=[b""])
@example(replies=[READY])
@example(replies=[Last(b"")])
@example(replies=[GOOD[:-6] + READY])
@example(replies=[PARSED + row(b'[{"position": 1, "outcome": "something"}]') + DONE + READY])
def test_every_request_is_answered_whatever_the_database_says(said: Said, server: Server, replies: list[bytes]) -> None:
    said.replies = list(replies)
    reply = requests.post(server.url, json=METRIC, timeout=5)
    check(reply)
    said.replies = []
    assert requests.post(server.url, json=METRIC, timeout=5).status_code == 200


def check(reply: requests.Response) -> None:
    """Fail if the reply is none of the contract."""
    if reply.status_code == 200:
        assert reply.content == b'{"message":"Metric stored successfully!"}'
        return
    problem: dict[str, Any] = json.loads(reply.content)
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert CODES[problem["code"]] == reply.status_code
    assert "psql" not in reply.text
