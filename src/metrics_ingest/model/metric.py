"""The rules of a metric, and the values that are filled in before it is stored."""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from time import time
from typing import Annotated, Any, NotRequired
from uuid import UUID, uuid3, uuid5

from pydantic import Field, GetPydanticSchema, StringConstraints, TypeAdapter
from pydantic_core import CoreSchema, core_schema, from_json, to_json
from typing_extensions import TypedDict

from metrics_ingest.errors import Fault
from metrics_ingest.model.validation import STRICT, validate_json, validate_or_count

# RFC 3339, section 5.6, where the offset is not optional. Leap seconds (":60") are refused: timestamptz has none.
RFC_3339 = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST = datetime(2200, 1, 1, tzinfo=UTC)  # beyond any MAX_FUTURE_SKEW_S; up to here seconds as a float are exact
EPOCH_US = 946_684_800_000_000  # PostgreSQL's epoch, which equals EARLIEST, in microseconds since 1970
DAY_US = 86_400_000_000
NIL = UUID(int=0)
NIL_BYTES = bytes(16)
# Version and variant bits of a random UUID, and the mask of its random bits (RFC 9562, section 5.4).
V4_BITS = 0x4000_8000_0000_0000_0000
V4_MASK = ~0xF000_C000_0000_0000_0000
# Namespace of the metric ids that are derived from an Idempotency-Key (RFC 9562, section 6.5).
METRIC_ID_NAMESPACE = UUID("6d0f5c4e-5d0b-5a86-9d3e-2a6b1f0c7e11")


def _timestamp_schema(_source: object, _handler: Callable[[Any], CoreSchema]) -> CoreSchema:
    """Check the text's form first, because pydantic's datetime also takes bare dates and Unix times in quotes."""
    return core_schema.chain_schema([
        core_schema.str_schema(strict=True, pattern=RFC_3339),
        core_schema.datetime_schema(strict=False, tz_constraint="aware", ge=EARLIEST, lt=LATEST),
    ])  # fmt: skip


Timestamp = Annotated[
    datetime,
    GetPydanticSchema(_timestamp_schema, lambda _schema, _handler: {"type": "string", "format": "date-time"}),
    Field(description="RFC 3339 with an offset; from 2000-01-01 to now and MAX_FUTURE_SKEW_S seconds"),
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Value = Annotated[
    Number | bool,
    Field(union_mode="left_to_right", description="finite, within the type's range; true and false are 1 and 0"),
]
MetricType = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$"), Field(examples=["talked_time"])]


class Metric(TypedDict):
    """One measurement of one user's session. docs/api.md has the rules in words."""

    __pydantic_config__ = STRICT  # type: ignore[misc]  # pydantic's way for a TypedDict

    user_id: Annotated[UUID, Field(description="a registered user")]
    metric_type: MetricType
    value: Value
    timestamp: Timestamp
    session_id: NotRequired[Annotated[UUID, Field(description="default: the user's implicit session of that UTC day")]]
    metric_id: NotRequired[Annotated[UUID, Field(description="the event's identity; default: a new one")]]


METRIC = TypeAdapter(Metric)
FIELDS = Metric.__required_keys__ | Metric.__optional_keys__

# A metric as it is stored: (user_id, timestamp, metric_id, session_id, metric_type, value). An id is its 16 bytes, the
# timestamp counts microseconds since 2000-01-01 UTC. A plain tuple, unpacked by name where it is used, because making a
# named tuple takes 0.2 µs more, 10% of reading a metric of a batch.
MetricRow = tuple[bytes, int, bytes, bytes, str, float]


def read(body: bytes) -> Metric:
    """Validate one metric as JSON. Raise RequestRefused with all its faults."""
    return validate_json(METRIC, FIELDS, body)


def count_faults(line: bytes) -> Metric | int:
    """Validate one metric as JSON, but return only the number of its faults where `read` raises them."""
    if not (line.startswith(b"{") and line.endswith(b"}")):  # no object: `line` has no blanks around it
        return 1
    try:
        return count_item_faults(from_json(line))
    except ValueError:
        return 1


def count_item_faults(item: Any) -> Metric | int:
    """Validate one metric from parsed JSON, but return only the number of its faults if it has any."""
    return validate_or_count(METRIC, FIELDS, item)


def complete(
    metrics: Sequence[Metric], positions: Sequence[int], key: str | None, skew_s: float
) -> tuple[list[MetricRow], dict[int, list[Fault]]]:
    """Fill in what may be left out; return the rows of the valid metrics, in order, and the others' faults by position.

    `positions` are those of the metrics in the request, `key` is its Idempotency-Key; both determine the metric ids.
    `skew_s` is how many seconds ahead of now a timestamp may be.
    """
    latest = round((time() + skew_s) * 1e6) - EPOCH_US
    # By pydantic, because Python's arithmetic with datetimes takes three times as long.
    times = from_json(to_json([metric["timestamp"] for metric in metrics], temporal_mode="seconds"))
    if key:
        new_ids = [uuid5(METRIC_ID_NAMESPACE, f"{key}\n{position}").bytes for position in positions]
    else:
        new_ids = _random_ids(len(metrics))
    rows = []
    faults = {}
    for position, metric, seconds, metric_id in zip(positions, metrics, times, new_ids, strict=True):
        at = round(seconds * 1e6) - EPOCH_US
        user_id = metric["user_id"].int.to_bytes(16)
        if "metric_id" in metric:
            metric_id = metric["metric_id"].int.to_bytes(16)
        if "session_id" in metric:
            session_id = metric["session_id"].int.to_bytes(16)
        else:
            session_id = implicit_session(user_id, at // DAY_US)
        if user_id == NIL_BYTES or at > latest:
            faults[position] = _late_faults(user_id, at, latest, str(UUID(bytes=metric_id)))
        else:
            rows.append((user_id, at, metric_id, session_id, metric["metric_type"], float(metric["value"])))
    return rows, faults


def _late_faults(user_id: bytes, at: int, latest: int, metric_id: str) -> list[Fault]:
    """The faults that pydantic's schema cannot express; `at` and `latest` in microseconds since 2000."""
    faults = []
    if user_id == NIL_BYTES:
        faults.append(Fault("invalid_uuid", "user_id must not be the nil UUID", "user_id", metric_id))
    if at > latest:
        until = EARLIEST + timedelta(microseconds=latest)
        detail = f"timestamp must be from {EARLIEST:%Y-%m-%d} to {until:%Y-%m-%dT%H:%M:%SZ}"
        faults.append(Fault("timestamp_out_of_range", detail, "timestamp", metric_id))
    return faults


@lru_cache(maxsize=65_536)
def implicit_session(user_id: bytes, day: int) -> bytes:
    """The session of metrics that name none, found without a lookup: UUIDv3 of user and UTC day (0 is 2000-01-01)."""
    return uuid3(UUID(bytes=user_id), (EARLIEST.date() + timedelta(days=day)).isoformat()).bytes


def _random_ids(count: int) -> list[bytes]:
    """Make UUIDv4s (RFC 9562, section 5.4) with one system call for all of them."""
    random = os.urandom(16 * count)
    return [(int.from_bytes(random[at : at + 16]) & V4_MASK | V4_BITS).to_bytes(16) for at in range(0, len(random), 16)]
