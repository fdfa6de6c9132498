"""The parsers, in this process: whatever bytes come, they give metrics that the contract allows or say why not."""

import gzip
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuzz.test_abuse import BODIES, CHANGES, CORPUS, bounded, mutated
from metrics_ingest.errors import RequestRefused
from metrics_ingest.http.bodies import check_structure, gunzip
from metrics_ingest.http.replies import problem, report_body
from metrics_ingest.model import batch
from metrics_ingest.model import user as users
from metrics_ingest.model.metric import EARLIEST, Row
from metrics_ingest.settings import settings
from metrics_ingest.storage.ingest import Report

NAMES = ("user_id", "metric_type", "value", "timestamp", "session_id", "metric_id", "metrics", "name", "email")
TEXTS = st.sampled_from(
    [
        "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d",
        "talked_time",
        "2024-08-08T12:34:56Z",
        "2024-08-08T12:34:56+23:59",
        "a@b.co",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), inner, max_size=7)
    ),
    max_leaves=20,
)
METRICS = st.fixed_dictionaries(
    {"user_id": TEXTS, "metric_type": TEXTS, "value": st.floats() | VALUES, "timestamp": TEXTS | st.text(max_size=30)},
    optional={"session_id": TEXTS, "metric_id": TEXTS | VALUES, "x": VALUES},
)
DOCUMENTS = VALUES | METRICS | st.lists(METRICS | VALUES, max_size=5) | st.builds(lambda m: {"metrics": m}, VALUES)
SEEDS = [(CORPUS / name).read_bytes()[:5_000] for name in BODIES if not name.startswith("gzip/")]
BYTES = (
    st.binary(max_size=200)
    | DOCUMENTS.map(lambda document: json.dumps(document).encode())
    | DOCUMENTS.map(lambda document: json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    | st.builds(mutated, st.sampled_from(SEEDS), CHANGES)
    | st.builds(mutated, DOCUMENTS.map(lambda document: json.dumps(document).encode()), CHANGES)
    | st.lists(st.sampled_from(SEEDS), max_size=4).map(b"\n".join)
)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", "postgresql://nobody@localhost/none")
        patch.setenv("ALLOW_ANONYMOUS", "true")
        settings.cache_clear()
        yield
    settings.cache_clear()


def is_allowed(row: Row) -> bool:
    """The contract's rules, in other words than the code's."""
    user_id, microseconds, metric_id, session_id, metric_type, value = row
    return (
        all(type(one) is bytes and len(one) == 16 for one in (user_id, metric_id, session_id))
        and user_id != bytes(16)
        and re.fullmatch(r"[a-z][a-z0-9_]{0,63}", metric_type, re.ASCII) is not None
        and type(value) is float
        and math.isfinite(value)
        and type(microseconds) is int
        and timedelta(0) <= timedelta(microseconds=microseconds) <= datetime.now(UTC) + timedelta(days=1) - EARLIEST
    )


def strict_json(body: bytes) -> Any:
    """The body by Python's own parser, which must agree that it is JSON."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    return json.loads(body.decode("utf-8"), parse_constant=refuse)


def parsed(parse: Callable[[bytes, str | None], Any], body: bytes) -> Any:
    """What the parser gives, or None where it refuses in the way that it should."""
    try:
        return parse(body, "key")
    except RequestRefused as error:
        answer = problem(error)
        assert 400 <= answer.status_code < 500
        assert json.loads(bytes(answer.body))["errors"]
        return None


@pytest.mark.parametrize("name", BODIES)
def test_bodies_of_the_corpus(name: str) -> None:
    body = (CORPUS / name).read_bytes()
    for parse in (batch.parse_one, batch.parse_many, batch.parse_lines):
        result = parsed(parse, body)
        assert result is None or all(map(is_allowed, result.rows))


@bounded
@given(body=BYTES)
@example(body=b"")
def test_any_body_of_ingest(body: bytes) -> None:
    if (result := parsed(batch.parse_one, body)) is not None:
        assert isinstance(strict_json(body), dict)
        (row,) = result.rows
        assert is_allowed(row)


@bounded
@given(body=BYTES)
def test_any_body_of_ingest_batch(body: bytes) -> None:
    for parse in (batch.parse_many, batch.parse_lines):
        if (result := parsed(parse, body)) is not None:
            assert all(map(is_allowed, result.rows))
            positions = [*result.positions, *result.faults]
            assert sorted(positions) == list(range(result.received))
            report = Report(result.received, result.rows, len(result.rows), 0, result.faults)
            told = json.loads(report_body(report))
            assert told["received"] == told["stored"] + told["rejected"]
            assert all(entry["code"] and entry["detail"] for entry in told["errors"])


@bounded
@given(body=BYTES)
def test_any_body_of_users(body: bytes) -> None:
    if (user := parsed(users.parse, body)) is not None:
        assert isinstance(strict_json(body), dict)
        assert set(user) == {"user_id", "name", "email"}
        assert 1 <= len(user["name"]) <= 200
        assert not re.search(r"[\x00-\x1f\x7f]", user["name"])
        assert user["name"].strip()
        assert user["email"] is None or "@" in user["email"][:321]


@bounded
@given(body=BYTES, changes=st.just([]) | CHANGES, members=st.integers(1, 3))
def test_any_gzip(body: bytes, changes: Any, members: int) -> None:
    limit = 1_000
    packed = mutated(gzip.compress(body, mtime=0) * members, changes)
    try:
        unpacked = gunzip(packed, limit)
    except RequestRefused as error:
        code = error.code
    else:
        code = ""
        assert unpacked == gzip.decompress(packed)
    if not changes:
        assert code == ("payload_too_large" if len(body) * members > limit else "")
    assert code in ("", "malformed_json", "payload_too_large")


@bounded
@given(unit=BYTES, most=st.integers(1, 10_000))
def test_structure_of_any_body(unit: bytes, most: int) -> None:
    body = unit * (200_000 // (len(unit) + 1))
    for ndjson in (True, False):
        with suppress(RequestRefused):
            check_structure(body, most, ndjson=ndjson)
