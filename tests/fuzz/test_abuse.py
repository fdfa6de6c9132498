"""Raw bytes and hostile bodies against real processes: the corpus, and what hypothesis makes of it.

`make fuzz` does the same for longer. What it finds belongs into corpus/.
"""

import gzip
import math
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from support.processes import Postgres, Server, Stack, function, query
from support.raw import exchange, post

CORPUS = Path(__file__).parent / "corpus"
USER = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
HTTP = sorted(path.name for path in (CORPUS / "http").iterdir())
BODIES = sorted(
    f"{path.parent.name}/{path.name}" for kind in ("json", "ndjson", "gzip") for path in (CORPUS / kind).iterdir()
)
HEADERS = {
    "json": {"Content-Type": "application/json"},
    "ndjson": {"Content-Type": "application/x-ndjson"},
    "gzip": {"Content-Type": "application/json", "Content-Encoding": "gzip"},
}

bounded = settings(
    max_examples=EXAMPLES or 100,
    derandomize=not EXAMPLES,  # in CI the same ones each time: what is red is what changed
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def targets(postgres: Postgres) -> Iterator[Stack]:
    """The three functions, whose database is looked through at the end."""
    url = postgres.clone()
    query(url, f"INSERT INTO users (user_id, name) VALUES ('{USER}', 'Greg')")
    with function("ingest", url) as one, function("ingest_batch", url) as many, function("users", url) as users:
        yield Stack(url, one, many, users)
        for server in (one, many, users):
            assert server.process.poll() is None
            for sign in ("Traceback", "internal error", "Exception", "store unavailable"):
                assert not server.log.partition(sign)[1], server.log[max(0, server.log.find(sign) - 500) :][:6_000]
        assert forbidden_rows(url) == {}


def forbidden_rows(url: str) -> dict[str, list[Any]]:
    """What is stored against the contract, as the database itself sees it."""
    rules = {
        "value": """SELECT m.* FROM metrics m JOIN metric_types t USING (metric_type)
            WHERE value IN ('NaN', 'Infinity', '-Infinity') OR value < t.min_value OR value > t.max_value
               OR t.kind = 'flag' AND value NOT IN (0, 1)""",
        "type": "SELECT * FROM metrics WHERE metric_type NOT IN (SELECT metric_type FROM metric_types)",
        "timestamp": "SELECT * FROM metrics WHERE timestamp < '2000-01-01Z' OR timestamp > now() + interval '1 day'",
        "user": "SELECT * FROM metrics WHERE user_id NOT IN (SELECT user_id FROM users)",
        "session": "SELECT * FROM metrics m WHERE NOT EXISTS (SELECT FROM sessions s"
        " WHERE (s.user_id, s.session_id) = (m.user_id, m.session_id))",
        "nil": "SELECT * FROM users WHERE user_id = '00000000-0000-0000-0000-000000000000'",
        "name": r"SELECT * FROM users WHERE name !~ '[^\s]' OR length(name) > 200 OR name ~ '[\x01-\x1f\x7f]'",
        "email": r"SELECT * FROM users WHERE email !~ '^[^\s@\x01-\x1f]+@[^\s@]+\.[^\s@]+$' OR length(email) > 320",
    }
    return {name: rows for name, sql in rules.items() if (rows := query(url, sql))}


def each(targets: Stack) -> tuple[Server, ...]:
    return targets.ingest, targets.ingest_batch, targets.users


def is_no_failure(answer: bytes) -> bool:
    """An answer that no defect gave: 4xx, 2xx, or none."""
    return not answer or answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4", b"HTTP/1.1 100"))


@pytest.mark.parametrize("name", HTTP)
def test_requests_of_the_corpus_break_nothing(targets: Stack, name: str) -> None:
    data = (CORPUS / "http" / name).read_bytes()
    assert is_no_failure(exchange(targets.ingest.port, data, wait_s=0.2))
    for server in each(targets):
        assert is_no_failure(exchange(server.port, data, finish=True))


def test_functions_answer_after_all_that(targets: Stack) -> None:
    for server in each(targets):
        assert requests.get(f"{server.url}/health", timeout=10).ok


@pytest.mark.parametrize("name", BODIES)
def test_bodies_of_the_corpus_are_refused_or_right(targets: Stack, name: str) -> None:
    body, kind = (CORPUS / name).read_bytes(), name.partition("/")[0]
    answers = [requests.post(server.url, data=body, headers=HEADERS[kind], timeout=30) for server in each(targets)]
    assert {answer.status_code for answer in answers} <= {200, 201, 207, 400, 409, 413, 415, 422}
    for answer in answers:
        if answer.status_code >= 400 and "received" not in answer.json():
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.json()["errors"][0]["code"] == answer.json()["code"]
    plain = body
    if kind == "gzip":
        return
    packed = {**HEADERS[kind], "Content-Encoding": "gzip"}
    again = [requests.post(s.url, data=gzip.compress(plain), headers=packed, timeout=30) for s in each(targets)]
    assert [answer.json().get("code") for answer in again] == [answer.json().get("code") for answer in answers]


def mutated(seed: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    """The seed with pieces put in, at positions that wrap around, in place of so many bytes."""
    data = bytearray(seed)
    for position, piece, replaced in changes:
        start = position % (len(data) + 1)
        data[start : start + replaced] = piece
    return bytes(data)


WORDS = rb': , " { [ } ] \ \u0000 \ud800 - 1e999 NaN null 99999999999999999999 chunked gzip'.split()
PIECES = st.sampled_from([*WORDS, b"", b" ", b"\0", b"\n", b"\r\n", b"\r\n\r\n", b"\xff"]) | st.binary(max_size=8)
CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), PIECES, st.integers(0, 8)), min_size=1, max_size=6)


@bounded
@given(name=st.sampled_from(HTTP), changes=CHANGES, target=st.integers(0, 2))
def test_mutated_requests_break_nothing(targets: Stack, name: str, changes: Any, target: int) -> None:
    data = mutated((CORPUS / "http" / name).read_bytes()[:5_000], changes)
    server = each(targets)[target]
    assert is_no_failure(exchange(server.port, data, finish=True)), data


@bounded
@given(name=st.sampled_from(BODIES), changes=CHANGES, target=st.integers(0, 2))
@example(name="json/good.json", changes=[], target=0)
def test_mutated_bodies_are_refused_or_right(targets: Stack, name: str, changes: Any, target: int) -> None:
    body, kind = mutated((CORPUS / name).read_bytes()[:20_000], changes), name.partition("/")[0]
    headers = [f"{field}: {value}" for field, value in HEADERS[kind].items()]
    answer = exchange(each(targets)[target].port, post("/", body, *headers), wait_s=10)
    assert answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4")), (body, answer)


@bounded
@given(value=st.floats() | st.integers() | st.booleans(), when=st.datetimes(), offset=st.integers(-1439, 1439))
def test_what_is_stored_is_what_was_sent(targets: Stack, value: float, when: datetime, offset: int) -> None:
    sign, minutes = "-" if offset < 0 else "+", abs(offset)
    timestamp = f"{when:%Y}".zfill(4) + f"{when:-%m-%dT%H:%M:%S.%f}{sign}{minutes // 60:02}:{minutes % 60:02}"
    metric = {"user_id": USER, "metric_type": "talked_time", "timestamp": timestamp, "metric_id": str(uuid4())}
    text = "true" if value is True else "false" if value is False else repr(value).replace("inf", "Infinity")
    body = str({**metric, "value": "VALUE"}).replace("'", '"').replace('"VALUE"', text)
    answer = requests.post(targets.ingest.url, data=body, timeout=10)
    rows = query(
        targets.database_url, "SELECT value, timestamp FROM metrics WHERE metric_id = :m", m=metric["metric_id"]
    )
    instant = None
    try:
        instant = datetime.fromisoformat(timestamp).astimezone(UTC)
    except OverflowError:
        assert answer.status_code == 422
    fits = math.isfinite(float(value)) and 0 <= value <= 86_400 if abs(value) < 1e308 or value != value else False
    if instant and fits and datetime(2000, 1, 1, tzinfo=UTC) <= instant <= datetime.now(UTC):
        assert (answer.status_code, rows) == (200, [[float(value), instant]])
    elif answer.status_code != 200:
        assert (answer.status_code, rows) in ((422, []), (400, []))
    else:
        assert fits
