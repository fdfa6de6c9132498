"""The parsers in this process: for any bytes they return metrics that the contract allows, or a refusal.

`make fuzz` does the same for longer. What it finds belongs into corpus/.
"""

import gzip
import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuzz.payloads import BODIES, BYTES, CHANGES, CORPUS, examples, mutated
from metrics_ingest.errors import RequestRefused
from metrics_ingest.http.bodies import check_structure, gunzip
from metrics_ingest.http.replies import problem, report_reply
from metrics_ingest.model import batch
from metrics_ingest.model import user as users
from metrics_ingest.model.metric import EARLIEST, MetricRow
from metrics_ingest.settings import settings
from metrics_ingest.storage.ingest import Report


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", "postgresql://nobody@localhost/none")
        patch.setenv("ALLOW_ANONYMOUS", "true")
        settings.cache_clear()
        yield
    settings.cache_clear()


def is_allowed(row: MetricRow) -> bool:
    """The contract's rules, in other words than the code's."""
    user_id, microseconds, metric_id, session_id, metric_type, value = row
    return (
        all(type(one) is bytes and len(one) == 16 for one in (user_id, metric_id, session_id))
        and bytes(16) not in (user_id, metric_id, session_id)
        and re.fullmatch(r"[a-z][a-z0-9_]{0,63}", metric_type, re.ASCII) is not None
        and type(value) is float
        and math.isfinite(value)
        and type(microseconds) is int
        and timedelta(0) <= timedelta(microseconds=microseconds) <= datetime.now(UTC) + timedelta(days=1) - EARLIEST
    )


def strict_json(body: bytes) -> Any:
    """The body by Python's own parser, which must agree that it is JSON and has no field twice."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), "a field is sent twice"
        return dict(pairs)

    return json.loads(body.decode("utf-8"), parse_constant=refuse, object_pairs_hook=unique)


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
def test_bodies_of_the_corpus_give_allowed_metrics_or_a_refusal(name: str) -> None:
    body = (CORPUS / name).read_bytes()
    for parse in (batch.parse_one, batch.parse_many, batch.parse_lines):
        if (result := parsed(parse, body)) is not None:
            assert all(map(is_allowed, result.rows))


@examples(100, weight=4)
@given(body=BYTES)
@example(body=b"")
def test_any_body_of_ingest_is_one_allowed_metric_or_refused(body: bytes) -> None:
    if (result := parsed(batch.parse_one, body)) is not None:
        assert isinstance(strict_json(body), dict)
        (row,) = result.rows
        assert is_allowed(row)


@examples(100, weight=4)
@given(body=BYTES)
def test_any_body_of_ingest_batch_is_accounted_for_or_refused(body: bytes) -> None:
    for parse in (batch.parse_many, batch.parse_lines):
        if (result := parsed(parse, body)) is not None:
            assert all(map(is_allowed, result.rows))
            positions = [*result.positions, *result.faults]
            assert sorted(positions) == list(range(result.received))
            report = Report(result.received, result.rows, len(result.rows), 0, result.faults)
            reported = json.loads(report_reply(report).body)
            assert reported["received"] == reported["stored"] + reported["rejected"]
            assert all(entry["code"] and entry["detail"] for entry in reported["errors"])


@examples(100, weight=4)
@given(body=BYTES)
def test_any_body_of_users_is_an_allowed_user_or_refused(body: bytes) -> None:
    if (user := parsed(users.parse, body)) is not None:
        assert isinstance(strict_json(body), dict)
        assert set(user) - {"email"} == {"user_id", "name"}
        assert 1 <= len(user["name"]) <= 200
        assert not re.search(r"[\x00-\x1f\x7f]", user["name"])
        assert user["name"].strip()
        if user.get("email") is not None:
            assert "@" in user["email"][:321]


@examples(100, weight=4)
@given(body=BYTES, changes=st.just([]) | CHANGES, members=st.integers(1, 3))
def test_any_gzip_is_unpacked_or_refused_within_the_limit(body: bytes, changes: Any, members: int) -> None:
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


@examples(100, weight=4)
@given(unit=BYTES, most=st.integers(1, 10_000))
def test_structure_of_any_large_body_is_accepted_or_refused(unit: bytes, most: int) -> None:
    body = unit * (200_000 // (len(unit) + 1))
    for ndjson in (True, False):
        parsed(lambda large, _: check_structure(large, most, ndjson=ndjson), body)  # noqa: B023  # called here, at once
