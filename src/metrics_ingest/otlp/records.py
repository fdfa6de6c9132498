"""Maps OpenTelemetry records (points of metrics, log records) to the metrics that are stored."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import lru_cache
from hashlib import sha1
from math import isfinite
from time import time
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.model.batch import Batch
from metrics_ingest.model.metric import (
    DAY_US,
    EPOCH_US,
    NIL_BYTES,
    READER,
    MetricRow,
    complete,
    implicit_session,
)
from metrics_ingest.otlp.teaching import taught
from metrics_ingest.settings import settings

Attributes = Mapping[str, Any]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Namespace of the ids of records without an id of their own, and the bits of a UUIDv5 (RFC 9562, sections 5.5 and 6.5).
RECORD_NAMESPACE = UUID("0f4f1b3a-9a0e-5d53-8c51-7f0b8d6c2e94")
V5_BITS = 0x5000_8000_0000_0000_0000
V5_MASK = ~0xF000_C000_0000_0000_0000
METRIC_TYPE = re.compile(r"[a-z][a-z0-9_]{0,63}")
MAX_NAME = 100  # characters; a longer name is not cached, because a cache of long texts could fill the memory


class Condition(Enum):
    """What a value may be stored for only if its metric type is aggregated in a certain way."""

    CUMULATIVE_SUM = "cumulative sum"
    CUMULATIVE_HISTOGRAM = "cumulative histogram"
    HISTOGRAM = "histogram"


@dataclass(slots=True)
class Group:
    """What all points of one metric, or all log records of one scope, have in common.

    `said` is the canonical form of that, from which ids are made. `kind` is what the records are, in words.
    """

    resource: Attributes
    said: bytes
    kind: str
    condition: Condition | None = None


def _earliest() -> float:
    """The earliest time that MAX_PAST_S allows, in seconds since 1970; 0 where it is not set."""
    return time() - settings().max_past_s if settings().max_past_s else 0.0


@dataclass(slots=True)
class Records:
    """The records of one request, by their position: valid ones as `rows`, the others as `refused` with their `faults`.

    A refused record is kept as the JSON metric that it amounts to.
    """

    earliest: float = field(default_factory=_earliest)
    latest: float = field(default_factory=lambda: time() + settings().max_future_skew_s)
    most: int = field(default_factory=lambda: settings().max_batch)
    received: int = 0
    rows: list[MetricRow] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    refused: dict[int, dict[str, Any]] = field(default_factory=dict)
    faults: dict[int, list[Fault]] = field(default_factory=dict)
    conditions: dict[int, Condition] = field(default_factory=dict)  # by index in `rows`
    _ordinals: dict[bytes, int] = field(default_factory=dict)

    def add(self, group: Group, name: str, attributes: Attributes, at_ns: int, value: Any, said: Any) -> None:
        """Map a record: its metric type from `name`, its time (Unix, ns; 0 is missing) and value (None is missing).

        `said` is all that the record says beside its group and attributes. Raise RequestRefused for too many records.
        """
        position = self.received
        if position >= self.most:
            raise RequestRefused(Fault("too_many_metrics", f"a request may have at most {self.most} records"))
        self.received += 1
        own_id = attributes.get("metric.id")
        metric_id = _uuid(attributes.get("log.record.uid") if own_id is None else own_id)
        if metric_id is None:
            metric_id = self._derived_id(group.said, to_json((sorted(attributes.items()), said)))
        user = attributes.get("user.id")
        if user is None:
            user = group.resource.get("user.id")
        session = attributes.get("session.id")
        if session is None:
            session = group.resource.get("session.id")
        user_id = _uuid(user)
        at = at_ns // 1_000 - EPOCH_US
        metric_type = metric_type_of(name)
        if (
            user_id is not None
            and metric_type
            and at >= 0
            and self.earliest * 1e9 <= at_ns <= self.latest * 1e9
            and isinstance(value, float | int)
            and isfinite(value)
            and (own_id is None or _uuid(own_id))
        ):
            session_id = implicit_session(user_id, at // DAY_US) if session is None else _uuid(session)
            if session_id is not None:
                self._accept(position, (user_id, at, metric_id, session_id, metric_type, float(value)), group)
                return
        metric = {
            "user_id": user,
            "metric_type": metric_type or name or None,
            "value": value,
            "timestamp": _rfc_3339(at_ns) if at_ns else None,
            "session_id": session,
            "metric_id": str(UUID(bytes=metric_id)) if own_id is None else own_id,
        }
        self._examine(position, {name: value for name, value in metric.items() if value is not None}, group)

    def batch(self, aggregations: Mapping[str, str]) -> Batch:
        """Return the metrics to store, after refusing what the types' aggregations (by name) do not allow."""
        if self.conditions:
            rows, positions = self.rows, self.positions
            self.rows, self.positions = [], []
            for index, (row, position) in enumerate(zip(rows, positions, strict=True)):
                condition = self.conditions.get(index)
                fault = _conflict(condition, row, aggregations) if condition else None
                if fault:
                    # A replay must not store it either, so the metric that is kept has a field that is refused.
                    self.refuse(position, metric_of(row) | {"opentelemetry": condition and condition.value}, [fault])
                else:
                    self.rows.append(row)
                    self.positions.append(position)
        return Batch(range(self.received), self.rows, self.positions, self.faults)

    def refuse(self, position: int, metric: dict[str, Any], faults: list[Fault]) -> None:
        """Set a record apart, with the JSON metric that it amounts to."""
        self.refused[position] = metric
        self.faults[position] = faults

    def _accept(self, position: int, row: MetricRow, group: Group) -> None:
        if group.condition:
            self.conditions[len(self.rows)] = group.condition
        self.rows.append(row)
        self.positions.append(position)

    def _examine(self, position: int, metric: dict[str, Any], group: Group) -> None:
        """Slow path: let the model find out what is wrong with a metric, if anything is."""
        try:
            item = READER.read_item(metric)
            rows, faults = complete([item], (position,), None, settings().max_future_skew_s, settings().max_past_s)
        except RequestRefused as refused:
            rows, faults = [], {position: list(refused.faults)}
        for row in rows:
            self._accept(position, row, group)
        if faults:
            self.refuse(position, metric, [taught(fault, group.kind) for fault in faults[position]])

    def _derived_id(self, group: bytes, record: bytes) -> bytes:
        """Return the UUIDv5 of all that a record says and, if an equal one came before it, of their number."""
        digest = sha1(RECORD_NAMESPACE.bytes + group + record, usedforsecurity=False).digest()
        ordinal = self._ordinals.get(digest, 0)
        self._ordinals[digest] = ordinal + 1
        if ordinal:
            said = RECORD_NAMESPACE.bytes + group + record + b"%d" % ordinal
            digest = sha1(said, usedforsecurity=False).digest()
        return (int.from_bytes(digest[:16]) & V5_MASK | V5_BITS).to_bytes(16)


def exact(number: float) -> float:
    """Return a number in its canonical form: a float, or an integer if no float has its value; never -0.0."""
    as_float = float(number)
    return as_float + 0.0 if as_float == number or as_float != as_float else number


def metric_of(row: MetricRow) -> dict[str, Any]:
    """Return the JSON metric of a row."""
    user_id, at, metric_id, session_id, metric_type, value = row
    return {
        "user_id": str(UUID(bytes=user_id)),
        "metric_type": metric_type,
        "value": value,
        "timestamp": _rfc_3339((at + EPOCH_US) * 1_000),
        "session_id": str(UUID(bytes=session_id)),
        "metric_id": str(UUID(bytes=metric_id)),
    }


def metric_type_of(name: str) -> str:
    """Return the name of an instrument or event in lower case, with `_` for `.` and `-`; "" if that is no type."""
    return _metric_type(name) if len(name) <= MAX_NAME else ""


@lru_cache(maxsize=4_096)
def _metric_type(name: str) -> str:
    metric_type = name.replace(".", "_").replace("-", "_").lower()
    return metric_type if METRIC_TYPE.fullmatch(metric_type) else ""


def _uuid(text: Any) -> bytes | None:
    """Return the bytes of a UUID in its usual form; None for all else, on which the slow path decides."""
    return _uuid_bytes(text) if isinstance(text, str) and len(text) == 36 else None


@lru_cache(maxsize=65_536)
def _uuid_bytes(text: str) -> bytes | None:
    if text[8] == text[13] == text[18] == text[23] == "-":
        digits = text.replace("-", "")
        if len(digits) == 32 and digits.isascii() and digits.isalnum():
            try:
                found = bytes.fromhex(digits)
            except ValueError:
                return None
            return None if found == NIL_BYTES else found
    return None


def _rfc_3339(at_ns: int) -> str:
    """Return a Unix time in nanoseconds as text, cut to microseconds."""
    return (EPOCH + timedelta(microseconds=at_ns // 1_000)).isoformat().replace("+00:00", "Z")


def _conflict(condition: Condition, row: MetricRow, aggregations: Mapping[str, str]) -> Fault | None:
    """Return why a value of that condition cannot be stored for its metric type, if so."""
    _, _, metric_id, _, metric_type, _ = row
    identity = str(UUID(bytes=metric_id))
    aggregation = aggregations.get(metric_type)
    if aggregation is None:
        detail = f"metric type {metric_type} is not registered"
        return taught(Fault("unknown_metric_type", detail, "metric_type", identity), condition.value)
    if aggregation == "sum" and condition is not Condition.HISTOGRAM:
        detail = (
            f"{metric_type} is added up, and each point of a {condition.value} has the earlier ones in it: set "
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=delta where the metric is recorded"
        )
        return Fault("cumulative_temporality", detail, "value", identity)
    if aggregation != "sum" and condition is not Condition.CUMULATIVE_SUM:
        detail = (
            f"{metric_type} is aggregated by {aggregation}, and a histogram has only a sum: "
            "record it with a gauge, or as an event, one for each value"
        )
        return Fault("invalid_value", detail, "value", identity)
    return None
