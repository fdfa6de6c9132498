"""What a metric is: the payload's rules, and what is filled in before it is stored."""

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from time import time
from typing import Annotated, Any, NotRequired
from uuid import UUID, uuid3, uuid5

from pydantic import ConfigDict, Field, GetPydanticSchema, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema, from_json, to_json
from typing_extensions import TypedDict

from metrics_ingest.errors import Fault, RequestRefused

# RFC 3339, section 5.6, where the offset is not optional. A leap second (":60") has no place in timestamptz.
RFC_3339 = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
FAR = datetime(2200, 1, 1, tzinfo=UTC)  # later than MAX_FUTURE_SKEW_S can reach; `_microseconds` is exact before it
EPOCH_US = 946_684_800_000_000  # PostgreSQL's epoch is EARLIEST, too; here in microseconds since 1970
DAY_US = 86_400_000_000
NIL = UUID(int=0)
NIL_BYTES = NIL.bytes
V4_BITS = 0x4000_8000_0000_0000_0000  # version and variant of a random UUID, and what is left for chance
V4_MASK = ~0xF000_C000_0000_0000_0000
# Namespace of the metric ids that are derived from an Idempotency-Key (RFC 9562, section 6.5).
KEYED_IDS = UUID("6d0f5c4e-5d0b-5a86-9d3e-2a6b1f0c7e11")


def _timestamp_schema(_source: object, _handler: Callable[[Any], CoreSchema]) -> CoreSchema:
    """Text of the right form first: on its own, pydantic also takes bare dates and Unix times in quotes."""
    return core_schema.chain_schema([
        core_schema.str_schema(strict=True, pattern=RFC_3339),
        core_schema.datetime_schema(strict=False, tz_constraint="aware", ge=EARLIEST, lt=FAR),
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


# Unknown fields are refused, but not by pydantic: its "forbid" makes an error of each, and a body of nothing else
# (9 MB) held the process for 25 seconds and took 2 GB.
CLOSED = ConfigDict(extra="ignore", strict=True, json_schema_extra={"additionalProperties": False})
MOST_UNKNOWN = 10  # unknown fields told of one object


class Metric(TypedDict):
    """One measurement of one user's session. docs/api.md, has the rules in words."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]  # pydantic's way for a TypedDict

    user_id: Annotated[UUID, Field(description="a registered user")]
    metric_type: MetricType
    value: Value
    timestamp: Timestamp
    session_id: NotRequired[Annotated[UUID, Field(description="default: the user's implicit session of that UTC day")]]
    metric_id: NotRequired[Annotated[UUID, Field(description="the event's identity; default: a new one")]]


# A metric as it is stored: user_id, timestamp (microseconds since 2000 UTC), metric_id, session_id, metric_type, value.
# An id is its 16 bytes.
Row = tuple[bytes, int, bytes, bytes, str, float]

METRIC = TypeAdapter(Metric)
FIELDS = Metric.__required_keys__ | Metric.__optional_keys__

INVALID = {
    "user_id": "invalid_uuid",
    "session_id": "invalid_uuid",
    "metric_id": "invalid_uuid",
    "metric_type": "invalid_metric_type",
    "value": "invalid_value",
    "timestamp": "invalid_timestamp",
}


def read(body: bytes) -> Metric:
    """Read one metric. Raise RequestRefused with all its faults."""
    try:
        metric = METRIC.validate_json(body)
    except ValidationError as error:
        raise RequestRefused(*faults(error, body)) from error
    if body.count(b'"') != quotation_marks([metric]) and (unknown := item_faults((), from_json(body))):
        raise RequestRefused(*unknown)
    return metric


def quotation_marks(items: Sequence[Metric]) -> int:
    """How many the JSON of these metrics has: two for each name and each text. One with more has other fields, too."""
    return 4 * sum(map(len, items)) - 2 * len(items)


def complete(
    items: Sequence[Metric], positions: Sequence[int], key: str | None, skew_s: float
) -> tuple[list[Row], dict[int, list[Fault]]]:
    """Fill in what may be left out. Return the rows, and the faults of those metrics that are wrong after all.

    Both are in the order of `items`; a metric at fault has a row, too. `positions` are the metrics' in the request, by
    which the faults go. `key` is the Idempotency-Key, which with the position gives a metric's id; `skew_s` how many
    seconds ahead of now a timestamp may be.
    """
    latest = time() + skew_s
    latest_us = round(latest * 1e6) - EPOCH_US
    times = _microseconds([item["timestamp"] for item in items])
    if key:
        new_ids = [uuid5(KEYED_IDS, f"{key}\n{position}").bytes for position in positions]
    else:
        new_ids = _random_ids(len(items))
    rows = []
    all_well = True
    for item, at, metric_id in zip(items, times, new_ids, strict=True):
        user_id = item["user_id"].int.to_bytes(16)
        if "metric_id" in item:
            metric_id = item["metric_id"].int.to_bytes(16)
        if "session_id" in item:
            session_id = item["session_id"].int.to_bytes(16)
        else:
            session_id = implicit_session(user_id, at // DAY_US)
        rows.append((user_id, at, metric_id, session_id, item["metric_type"], float(item["value"])))
        if at > latest_us or user_id == NIL_BYTES:
            all_well = False
    if all_well:
        return rows, {}
    return rows, {
        position: wrong
        for position, row in zip(positions, rows, strict=True)
        if (wrong := _late_faults(row, latest, latest_us))
    }


def _late_faults(row: Row, latest: float, latest_us: int) -> list[Fault]:
    """What is wrong with a metric that pydantic let pass."""
    user_id, at, metric_id = row[0], row[1], str(UUID(bytes=row[2]))
    found = []
    if user_id == NIL_BYTES:
        found.append(Fault("invalid_uuid", "user_id must not be the nil UUID", "user_id", metric_id))
    if at > latest_us:
        until = datetime.fromtimestamp(latest, UTC)
        detail = f"timestamp must be from {EARLIEST:%Y-%m-%d} to {until:%Y-%m-%dT%H:%M:%SZ}"
        found.append(Fault("timestamp_out_of_range", detail, "timestamp", metric_id))
    return found


def _microseconds(instants: list[datetime]) -> list[int]:
    """Since 2000, by way of pydantic: in Python the arithmetic of times with offsets takes three times as long."""
    seconds = from_json(to_json(instants, temporal_mode="seconds"))
    return [round(second * 1e6) - EPOCH_US for second in seconds]


@lru_cache(maxsize=65_536)
def implicit_session(user_id: bytes, day: int) -> bytes:
    """The session of metrics that name none: UUIDv3 of the date in the user's namespace, so no look-up is needed.

    `day` counts from 2000-01-01, in UTC.
    """
    return uuid3(UUID(bytes=user_id), (EARLIEST.date() + timedelta(days=day)).isoformat()).bytes


def _random_ids(count: int) -> list[bytes]:
    """UUIDv4s (RFC 9562, section 5.4), of one system call."""
    random = os.urandom(16 * count)
    return [(int.from_bytes(random[at : at + 16]) & V4_MASK | V4_BITS).to_bytes(16) for at in range(0, len(random), 16)]


Entry = tuple[str, tuple[int | str, ...], str]  # a pydantic error: type, location, message


def entries(error: ValidationError) -> list[Entry]:
    """Pydantic's errors. Without their inputs, of which each would be a copy of all that it is missing from."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [(entry["type"], entry["loc"], entry["msg"]) for entry in found]


def faults(error: ValidationError, body: bytes, fields: frozenset[str] = FIELDS) -> list[Fault]:
    """What is wrong with `body`, which should be one object of these fields."""
    found = entries(error)
    if found[0][0] == "json_invalid":
        return [Fault("malformed_json", found[0][2])]
    return item_faults(found, from_json(body), fields)


def item_faults(found: Iterable[Entry], item: Any, fields: frozenset[str] = FIELDS) -> list[Fault]:
    """What is wrong with one object, in the order of its fields; with its metric_id, so that the sender finds it."""
    if not isinstance(item, dict):
        return [Fault("invalid_field", "a JSON object is expected")]
    metric_id = None
    if "metric_id" in fields and not any(path[0] == "metric_id" for _, path, _ in found):
        metric_id = str(UUID(item["metric_id"])) if "metric_id" in item else None
    # A union reports each of its branches: one fault a field says it once.
    by_field = {str(path[0]): _fault(kind, str(path[0]), item.get(str(path[0])), metric_id) for kind, path, _ in found}
    return [*by_field.values(), *unknown_fields(item, fields, metric_id)]


def unknown_fields(item: Iterable[str], fields: frozenset[str] = FIELDS, metric_id: str | None = None) -> list[Fault]:
    """The faults of the fields that are not known, the first few of them."""
    names = (name[:100] for name in item if name not in fields)
    return [
        Fault("unknown_field", f"{name} is not a field that is known here", name, metric_id)
        for name in islice(names, MOST_UNKNOWN)
    ]


def _fault(kind: str, name: str, value: object, metric_id: str | None) -> Fault:
    if kind == "missing":
        return Fault("missing_field", f"{name} is missing", name, metric_id)
    if kind in ("greater_than_equal", "less_than"):
        bound = f"before {EARLIEST:%Y-%m-%d}" if kind == "greater_than_equal" else f"as late as {FAR:%Y-%m-%d}"
        return Fault("timestamp_out_of_range", f"{name} must not be {bound}", name, metric_id)
    code, expected = INVALID.get(name, "invalid_field"), EXPECTED.get(name, "valid")
    return Fault(code, f"{name} must be {expected}, got {shown(value)}", name, metric_id)


EXPECTED = {
    "user_id": "a UUID",
    "session_id": "a UUID",
    "metric_id": "a UUID",
    "metric_type": "a lower-case name like talked_time",
    "value": "a finite number, true or false",
    "timestamp": "an RFC 3339 time with an offset, like 2024-08-08T12:34:56Z",
    "name": "1 to 200 characters",
    "email": "an e-mail address",
}


def shown(value: object) -> str:
    """The value as the sender would recognise it, in at most 60 characters."""
    text = to_json(value[:60] if isinstance(value, str) else value, inf_nan_mode="constants").decode()
    return text if len(text) <= 60 else text[:57] + "..."
