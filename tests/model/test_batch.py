"""Reading batches, without a server or a database: the fast and the slow path agree, and neither costs too much."""

import json
import time
import tracemalloc
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from metrics_ingest.errors import RequestRefused
from metrics_ingest.http.bodies import check_structure
from metrics_ingest.model import batch
from metrics_ingest.settings import settings

pytestmark = pytest.mark.usefixtures("library")

METRIC = {
    "user_id": "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d",
    "metric_type": "talked_time",
    "value": 12.5,
    "timestamp": "2024-08-08T12:34:56.000001+02:00",
}


NIL = str(UUID(int=0))


def array(*metrics: Any) -> bytes:
    return json.dumps(metrics).encode()


def lines(*metrics: Any) -> bytes:
    return b"\n".join(json.dumps(metric).encode() for metric in metrics)


@pytest.mark.parametrize(("parse", "body"), [(batch.parse_many, array), (batch.parse_lines, lines)])
def test_valid_metrics_are_read_alike_beside_an_invalid_one(parse: Any, body: Any) -> None:
    """One invalid metric sends the whole batch through the slow path."""
    metrics = [METRIC | {"value": value, "session_id": str(UUID(int=value + 1))} for value in range(3)]
    fast = parse(body(*metrics), "key")
    slow = parse(body(*metrics, METRIC | {"mood": "good"}), "key")
    assert (slow.received, slow.rows, list(slow.positions)) == (4, fast.rows, [0, 1, 2])
    assert [(fault.code, fault.field) for fault in slow.faults[3]] == [("unknown_field", "mood")]


@pytest.mark.parametrize(
    "changes",
    [{"session_id": None}, {"metric_id": None}, {"session_id": None, "metric_id": None}, {"value": 3}, {"value": True}],
)
@pytest.mark.parametrize(("parse", "body"), [(batch.parse_many, array), (batch.parse_lines, lines)])
def test_field_sent_twice_is_found_beside_nulls(parse: Any, body: Any, changes: dict[str, Any]) -> None:
    """Nor do valid metrics with nulls need the slow path to be accepted."""
    metric = METRIC | changes
    assert not parse(body(metric, METRIC), None).faults
    twice = body(metric, METRIC).replace(b"{", b'{"session_id":null,"session_id": "",', 1)
    found = parse(twice, None)
    assert {position: [(fault.code, fault.field) for fault in faults] for position, faults in found.faults.items()} == {
        0: [("invalid_field", "session_id")]
    }


def test_repeated_fields_are_reported_up_to_a_limit() -> None:
    """Also names of any length, and each once."""
    names = [f"{number}{'x' * 200}" for number in range(15)]
    text = ",".join(f'"{name}":1,"{name}":2,"{name}":3' for name in names)
    (faults,) = batch.parse_many(b"[{%b}]" % text.encode(), None).faults.values()
    assert [fault.field for fault in faults if fault.code == "invalid_field"] == [name[:100] for name in names[:10]]


@pytest.mark.parametrize("field", ["user_id", "session_id", "metric_id"])
def test_nil_uuid_is_refused_wherever_a_uuid_is_read(field: str) -> None:
    found = batch.parse_many(array(METRIC | {field: NIL}, METRIC), "key")
    assert [(fault.code, fault.field) for fault in found.faults[0]] == [("invalid_uuid", field)]
    assert list(found.positions) == [1]


def test_timestamp_may_be_so_old_as_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def faults(age_s: float) -> list[str]:
        timestamp = datetime.fromtimestamp(time.time() - age_s, UTC).isoformat()
        found = batch.parse_many(array(METRIC | {"timestamp": timestamp}), None)
        return [fault.code for fault in found.faults.get(0, [])]

    assert faults(7200) == []
    monkeypatch.setenv("MAX_PAST_S", "3600")
    settings.cache_clear()
    assert (faults(3500), faults(3700)) == ([], ["timestamp_out_of_range"])


def test_at_most_ten_unknown_fields_are_reported_per_metric() -> None:
    unknown = {f"field {number}": number for number in range(15)}
    found = batch.parse_many(array(METRIC | unknown, {"value": "1"} | unknown), None)
    for faults, codes in zip(found.faults.values(), ([], ["invalid_value"] + ["missing_field"] * 3), strict=True):
        assert [fault.code for fault in faults if fault.code == "unknown_field"] == ["unknown_field"] * 10
        assert sorted(fault.code for fault in faults if fault.code != "unknown_field") == codes
    assert not found.rows


def test_two_metrics_on_one_line_and_one_on_two_lines_are_three_rejected_metrics() -> None:
    """Joined to an array they are as many valid metrics as lines."""
    one = json.dumps(METRIC).encode()
    half = one.index(b",") + 1
    found = batch.parse_lines(b"%b,%b\n%b\n%b" % (one, one, one[:half], one[half:]), None)
    assert (found.received, found.rows) == (3, [])
    assert {fault.code for faults in found.faults.values() for fault in faults} == {"malformed_json"}


@pytest.mark.parametrize("torn", ['"value":"x|{",', '"value":[{}|{"q":1}],', '"value":"x}|{",', '"value":[1|{}],'])
def test_field_sent_twice_hides_no_line_that_is_half_a_metric(torn: str) -> None:
    """Of a field that is sent twice pydantic reads only the last value."""
    one = json.dumps(METRIC).encode()
    head, tail = (b"{" + torn.encode() + one[1:]).split(b"|")
    found = batch.parse_lines(b"%b,%b\n%b\n%b" % (one, one, head, tail), None)
    assert (found.received, found.rows) == (3, [])


def many_fields(count: int) -> bytes:
    return b"[{%b}]" % b",".join(b'"%048d":1' % number for number in range(count))


@pytest.mark.parametrize(
    ("body", "code", "count"),
    [
        (many_fields(160_000), "missing_field", 14),
        (b"[%b]" % b",".join([many_fields(16)[1:-1]] * 10_000), "missing_field", 140_000),
        (b"[%b]" % b",".join([b"{}"] * 10_000), "missing_field", 40_000),
    ],
    ids=["one metric of 160,000 fields", "10,000 metrics of 16 fields", "10,000 empty metrics"],
)
def test_unknown_fields_cost_no_more_than_the_body_allows(body: bytes, code: str, count: int) -> None:
    """Pydantic makes an error object of each; a body of a million once took 25 s and 2 GB."""
    check_structure(body, settings().max_batch)
    tracemalloc.start()
    started = time.process_time()
    found = batch.parse_many(body, None)
    assert time.process_time() - started < 5  # 0.1 to 0.4 s without tracemalloc
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150_000_000
    assert all(faults[0].code == code and len(faults) <= 14 for faults in found.faults.values() if faults)
    assert found.fault_count == count


@pytest.mark.parametrize("body", [b"", b"x", b"[", b"[]", b"{}", b"1", b'{"metrics": 1}', b'{"metrics": [], "x": 1}'])
def test_body_that_is_no_batch_is_refused(body: bytes) -> None:
    with pytest.raises(RequestRefused):
        batch.parse_many(body, None)
