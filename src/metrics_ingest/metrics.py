"""What a metric is: the payload's rules, and what is filled in before it is stored."""

import os
from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import lru_cache
from time import time
from typing import Annotated, Any, NotRequired
from uuid import UUID, uuid3, uuid5

from pydantic import ConfigDict, Field, GetPydanticSchema, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema, to_json
from typing_extensions import TypedDict

from metrics_ingest.errors import Fault

# RFC 3339, section 5.6, where the offset is not optional. A leap second (":60") has no place in timestamptz.
RFC_3339 = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
NIL = UUID(int=0)
# Namespace of the metric ids that are derived from an Idempotency-Key (RFC 9562, section 6.5).
KEYED_IDS = UUID("6d0f5c4e-5d0b-5a86-9d3e-2a6b1f0c7e11")


def _timestamp_schema(_source: object, _handler: Callable[[Any], CoreSchema]) -> CoreSchema:
    """Text of the right form first: on its own, pydantic also takes bare dates and Unix times in quotes."""
    return core_schema.chain_schema([
        core_schema.str_schema(strict=True, pattern=RFC_3339),
        core_schema.datetime_schema(strict=False, tz_constraint="aware", ge=EARLIEST),
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
    """One measurement of one user's session. README, The API, has the rules in words."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]  # pydantic's way for a TypedDict

    user_id: Annotated[UUID, Field(description="a registered user")]
    metric_type: MetricType
    value: Value
    timestamp: Timestamp
    session_id: NotRequired[Annotated[UUID, Field(description="default: the user's implicit session of that UTC day")]]
    metric_id: NotRequired[Annotated[UUID, Field(description="the event's identity; default: a new one")]]


METRIC = TypeAdapter(Metric)
METRICS = TypeAdapter(list[Metric])

INVALID = {
    "user_id": "invalid_uuid",
    "session_id": "invalid_uuid",
    "metric_id": "invalid_uuid",
    "metric_type": "invalid_metric_type",
    "value": "invalid_value",
    "timestamp": "invalid_timestamp",
}


def complete(metric: Metric, latest: datetime, key: str | None, position: int) -> Fault | None:
    """Fill in what may be left out, put the time in UTC and a flag as a number, in place; return the fault, if any.

    `latest` is the last acceptable instant; `key` the Idempotency-Key, which with the position gives the metric's id.
    """
    if "metric_id" not in metric:
        metric["metric_id"] = uuid5(KEYED_IDS, f"{key}\n{position}") if key else _random_uuid()
    timestamp = metric["timestamp"]
    if timestamp > latest:
        return Fault(
            "timestamp_out_of_range",
            f"timestamp must be from {EARLIEST:%Y-%m-%d} to {latest:%Y-%m-%dT%H:%M:%SZ}",
            "timestamp",
            str(metric["metric_id"]),
        )
    if metric["user_id"] == NIL:
        return Fault("invalid_uuid", "user_id must not be the nil UUID", "user_id", str(metric["metric_id"]))
    metric["timestamp"] = timestamp = timestamp.astimezone(UTC)
    metric["value"] = float(metric["value"])
    if "session_id" not in metric:
        metric["session_id"] = implicit_session(metric["user_id"], timestamp.date())
    return None


def latest_acceptable(skew_s: float) -> datetime:
    """The last instant that a timestamp may name now."""
    return datetime.fromtimestamp(time() + skew_s, UTC)


@lru_cache(maxsize=65_536)
def implicit_session(user_id: UUID, day: date) -> UUID:
    """The session of metrics that name none: UUIDv3 of the day in the user's namespace, so no look-up is needed."""
    return uuid3(user_id, day.isoformat())


def _random_uuid() -> UUID:
    return UUID(bytes=os.urandom(16), version=4)


def faults(error: ValidationError, invalid: dict[str, str] = INVALID, skip: int = 0) -> dict[int | None, list[Fault]]:
    """Pydantic's errors as ours, by the item's position (None where it is not one item of a list that is wrong).

    `skip` steps of each location lead to the list.
    """
    found: dict[int | None, dict[tuple[str | None, str], Fault]] = {}
    for entry in error.errors(include_url=False, include_context=False):
        location = entry["loc"][skip:] if len(entry["loc"]) > skip else entry["loc"]
        position = location[0] if location and isinstance(location[0], int) else None
        path = location[1:] if position is not None else location
        name = str(path[0])[:100] if path else None
        fault = _fault(entry["type"], name, entry["msg"], entry["input"], invalid)
        # A union reports each of its branches: one fault a field says it once.
        found.setdefault(position, {}).setdefault((name, fault.code), fault)
    return {position: list(by_field.values()) for position, by_field in found.items()}


def _fault(kind: str, name: str | None, message: str, value: object, invalid: dict[str, str]) -> Fault:
    if kind == "json_invalid":
        return Fault("malformed_json", message)
    if name is None:
        return Fault("invalid_field", "a JSON object is expected")
    if kind == "missing":
        return Fault("missing_field", f"{name} is missing", name)
    if kind == "extra_forbidden":
        return Fault("unknown_field", f"{name} is not a field that is known here", name)
    if kind == "greater_than_equal":
        return Fault("timestamp_out_of_range", f"{name} must not be before {EARLIEST:%Y-%m-%d}", name)
    return Fault(
        invalid.get(name, "invalid_field"), f"{name} must be {EXPECTED.get(name, 'valid')}, got {shown(value)}", name
    )


EXPECTED = {
    "user_id": "a UUID",
    "session_id": "a UUID",
    "metric_id": "a UUID",
    "metric_type": "a lower-case name like talked_time",
    "value": "a finite number, true or false",
    "timestamp": "an RFC 3339 time with an offset, like 2024-08-08T12:34:56Z",
}


def shown(value: object) -> str:
    """The value as the sender would recognise it, in at most 60 characters."""
    text = to_json(value, inf_nan_mode="constants").decode()
    return text if len(text) <= 60 else text[:57] + "..."
