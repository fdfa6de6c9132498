"""The ids of records without one of their own: canonical, and different for all that differs."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from metrics_ingest.otlp import json_text, protobuf
from metrics_ingest.otlp.records import Records
from otlp.conftest import Otlp
from support.otlp import as_json, logs, metrics, post, refused, set_attributes

pytestmark = pytest.mark.usefixtures("library")
USER = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
AT = 1_723_120_496_123_456_789


def ids(request: Any, form: str = "protobuf") -> list[str]:
    """The metric ids of a request's records."""
    records = Records()
    signal = "logs" if "Logs" in type(request).__name__ else "metrics"
    body = request.SerializeToString() if form == "protobuf" else json.dumps(as_json(request)).encode()
    getattr(protobuf if form == "protobuf" else json_text, f"read_{signal}")(body, records)
    assert not records.faults, records.faults
    return [str(UUID(bytes=metric_id)) for _, _, metric_id, _, _, _ in records.rows]


def gauge(value: float = 1.5, attributes: dict[str, Any] | None = None, **changes: Any) -> Any:
    point = {"time_unix_nano": AT, "start_time_unix_nano": 5, "attributes": {"user.id": USER, **(attributes or {})}}
    number = {"as_int": value} if isinstance(value, int) else {"as_double": value}
    point |= {name: changes.pop(name) for name in list(changes) if name.endswith("nano")}
    return metrics("gauge", changes.pop("name", "talked_time"), point | number, **changes)


def event(**changes: Any) -> Any:
    attributes = {"user.id": USER, **changes.pop("attributes", {})}
    record = {"event_name": "talked_time", "body": 1, "time_unix_nano": AT, "attributes": attributes}
    resource = changes.pop("resource", None)
    return logs(record | changes, resource=resource)


def test_ids_are_version_5_and_stay_what_they_are() -> None:
    """A release that computed them in another way would store once more what is sent to it again."""
    assert ids(gauge()) == ["b56ac018-ed18-5e05-aa57-3674d3a5f5f6"]
    of_each_kind = event(attributes={"a": [1, 2.5, True, b"x", {"k": "v"}, "ü"]})
    assert ids(of_each_kind) == ["164e9da3-c067-58ce-8ca1-9f8c362496a7"]
    assert UUID(ids(gauge())[0]).version == 5


CANONICAL = [
    (gauge(2, {"a": 1, "b": "x"}), gauge(2.0, {"b": "x", "a": 1.0})),
    (gauge(0.0), gauge(-0.0)),
    (gauge(0), gauge(-0.0)),
    (gauge(1.5, {"a": {"x": 1, "y": 2}}), gauge(1.5, {"a": {"y": 2.0, "x": 1.0}})),
    (gauge(1.5, resource={"a": 1, "b": 2}), gauge(1.5, resource={"b": 2, "a": 1.0})),
    (event(body=3, attributes={"a": [0]}), event(body=3.0, attributes={"a": [-0.0]})),
]


@pytest.mark.parametrize(("one", "other"), CANONICAL)
def test_order_and_kind_of_number_make_no_difference_nor_does_the_form(one: Any, other: Any) -> None:
    assert len({*ids(one), *ids(other), *ids(one, "json"), *ids(other, "json")}) == 1


def with_scope(**fields: Any) -> Any:
    request = gauge()
    scope = request.resource_metrics[0].scope_metrics[0].scope
    set_attributes(scope.attributes, fields.pop("attributes", {}))
    for name, value in fields.items():
        setattr(scope, name, value)
    return request


DIFFERENT = [
    gauge(),
    gauge(1.25),
    gauge(name="talked-time"),
    gauge(time_unix_nano=AT + 1),  # the same microsecond
    gauge(start_time_unix_nano=6),
    gauge(attributes={"a": 1}),
    gauge(attributes={"a": True}),
    gauge(attributes={"a": "1"}),
    gauge(attributes={"a": [1]}),
    gauge(attributes={"a": 2**53 + 1}),
    gauge(attributes={"a": 2**53}),
    gauge(attributes={"a": b"1"}),
    gauge(attributes={"a": {"bytes": "MQ=="}}),
    gauge(attributes={"a": None}),
    gauge(attributes={"a": ""}),
    gauge(resource={"a": 1}),
    gauge(scope="other"),
    with_scope(version="1"),
    with_scope(attributes={"a": 1}),
    metrics("sum", "talked_time", {"as_double": 1.5, "time_unix_nano": AT, "start_time_unix_nano": 5,
                                   "attributes": {"user.id": USER}}),
    event(),
    event(body=2),
    event(body=True),
    event(body="x", attributes={"value": 1}),
    event(event_name="talked-time"),
    event(time_unix_nano=AT + 1),
    event(observed_time_unix_nano=AT),
    event(severity_number=9),
    event(severity_text="INFO"),
    event(trace_id=b"t" * 16),
    event(span_id=b"s" * 8),
    event(flags=1),
    event(attributes={"a": 1}),
    event(resource={"a": 1}),
]  # fmt: skip


def test_all_that_a_record_says_makes_a_difference() -> None:
    for form in ("protobuf", "json"):
        found = [ids(request, form)[0] for request in DIFFERENT]
        assert len(set(found)) == len(DIFFERENT)
    assert found == [ids(request)[0] for request in DIFFERENT]


def test_equal_records_of_a_request_stay_two_and_a_repeat_stays_the_same_two(otlp: Otlp) -> None:
    user = otlp.user()
    points = [{"as_int": 5, "time_unix_nano": AT, "attributes": {"user.id": user}}] * 2
    for form in ("protobuf", "json", "protobuf"):
        assert refused(post(otlp.url, metrics("gauge", "talked_time", *points), as_=form)) == (0, "")
        rows = otlp.rows(user)
        assert len(rows) == len({row["metric_id"] for row in rows}) == 2


def test_batches_that_are_cut_anew_change_no_id() -> None:
    """As by a collector: other records before, after and in other groups."""
    together = gauge(1.5)
    metric = together.resource_metrics[0].scope_metrics[0].metrics[0]
    metric.gauge.data_points.add().CopyFrom(metric.gauge.data_points[0])
    metric.gauge.data_points[0].as_double = 9.5
    together.MergeFrom(gauge(7.5))
    assert len(set(ids(together))) == 3
    assert ids(together)[1:] == [*ids(gauge(1.5)), *ids(gauge(7.5))]
    # A collector may also put metrics of one resource and scope together.
    merged = gauge(1.5)
    merged.resource_metrics[0].scope_metrics[0].metrics.add().CopyFrom(
        gauge(7.5).resource_metrics[0].scope_metrics[0].metrics[0]
    )
    assert ids(merged) == [*ids(gauge(1.5)), *ids(gauge(7.5))]


def test_own_id_is_kept() -> None:
    own = str(uuid4())
    assert ids(gauge(attributes={"metric.id": own})) == [own]
    assert ids(event(attributes={"log.record.uid": own})) == [own]
    assert ids(event(attributes={"log.record.uid": str(uuid4()), "metric.id": own})) == [own]
    assert ids(event(attributes={"metric.id": own.upper()})) == [own]
    assert ids(event(attributes={"metric.id": own.replace("-", "")})) == [own]
