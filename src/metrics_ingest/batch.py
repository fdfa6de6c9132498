"""From a body to metrics, and from the database's outcomes to an account of every one of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from typing_extensions import TypedDict

from metrics_ingest import metrics
from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.metrics import METRIC, Metric, shown
from metrics_ingest.service import Headers, fault_entry
from metrics_ingest.settings import settings
from metrics_ingest.store import Call, Commit, Outcome
from metrics_ingest.writer import writer

IS_OBJECT = re.compile(rb"[ \t\r\n]*\{")


@dataclass(slots=True)
class Batch:
    """What a request sent: well-formed `metrics`, their `positions`, and the faults of the others by position."""

    received: int
    metrics: list[Metric]
    positions: Sequence[int]
    faults: dict[int, list[Fault]]


@dataclass(slots=True)
class Report:
    """What became of a batch: received = stored + duplicates + len(faults), but for a refused strict one."""

    received: int
    metrics: list[Metric]
    stored: int
    duplicates: int
    faults: dict[int, list[Fault]] = field(default_factory=dict)

    @property
    def status(self) -> HTTPStatus:
        """200 none rejected, 422 nothing accepted, 207 some of each."""
        if not self.faults:
            return HTTPStatus.OK
        return HTTPStatus.MULTI_STATUS if self.stored or self.duplicates else HTTPStatus.UNPROCESSABLE_ENTITY

    def to_json(self) -> bytes:
        """The answer of /ingest_batch/."""
        return to_json({
            "message": f"{self.stored} of {self.received} metrics stored",
            "received": self.received,
            "stored": self.stored,
            "duplicates": self.duplicates,
            "rejected": len(self.faults),
            "errors": [
                {"index": position, **fault_entry(fault)}
                for position in sorted(self.faults)
                for fault in self.faults[position]
            ],
        })  # fmt: skip


def parse_one(body: bytes, key: str | None) -> Batch:
    """Read one metric. Raise RequestRefused with all its faults."""
    try:
        metric = METRIC.validate_json(body)
    except ValidationError as error:
        raise RequestRefused(*metrics.faults(error)[None]) from error
    fault = metrics.complete(metric, metrics.latest_acceptable(settings().max_future_skew_s), key, 0)
    if fault:
        raise RequestRefused(fault)
    return Batch(1, [metric], (0,), {})


def parse_many(body: bytes, key: str | None) -> Batch:
    """Read a JSON array of metrics, or {"metrics": [...]}. Raise RequestRefused where it is neither."""
    enveloped = IS_OBJECT.match(body) is not None
    try:
        if enveloped:
            return _completed(_envelope().validate_json(body)["metrics"], key)
        return _completed(_array().validate_json(body), key)
    except ValidationError as error:
        faults = _faults_by_position(error, enveloped)
    items = from_json(body)
    if enveloped:
        items = items["metrics"]
    return _taken_apart(items, faults, key)


def parse_lines(body: bytes, key: str | None) -> Batch:
    """Read NDJSON: one metric a line, blank lines skipped. A line that cannot be read is one rejected metric."""
    lines = [line for line in map(bytes.strip, body.split(b"\n")) if line]
    _check_size(len(lines))
    if all(line.startswith(b"{") for line in lines):
        try:
            # Joined, they are read in one call. Metrics are flat: none can stretch over lines that each begin with "{".
            found = _array().validate_json(b"[" + b",".join(lines) + b"]")
        except ValidationError:
            found = []
        if len(found) == len(lines):
            return _completed(found, key)
    faults = {}
    read = []
    for position, line in enumerate(lines):
        try:
            read.append((position, METRIC.validate_json(line)))
        except ValidationError as error:
            faults[position] = _identified(metrics.faults(error)[None], _raw(line))
    return _completed([metric for _, metric in read], key, [position for position, _ in read], faults, len(lines))


def _raw(line: bytes) -> Any:
    try:
        return from_json(line)
    except ValueError:
        return None


def is_strict(headers: Headers) -> bool:
    """Whether the sender prefers handling=strict (RFC 7240, sections 2 and 4.4). Of several wishes the first counts."""
    for preference in headers.get(b"prefer", b"").lower().split(b","):
        name, _, value = preference.partition(b";")[0].partition(b"=")
        if name.strip() == b"handling":
            return value.strip().strip(b'"') == b"strict"
    return False


async def store(batch: Batch, *, strict: bool = False) -> Report:
    """Store what is well-formed and account for all; strictly, store everything or nothing.

    Raise what Writer.write raises.
    """
    commit = Commit.ALWAYS
    if strict:  # with faults already known, the database is still asked for those that only it can find
        commit = Commit.NEVER if batch.faults else Commit.ALL_STORED
    outcomes = await writer().write(Call.INGEST, batch.metrics, commit) if batch.metrics else []
    duplicates = 0
    faults = batch.faults
    for outcome in outcomes:
        if outcome.kind == "duplicate":
            duplicates += 1
        else:
            fault = _fault(outcome, batch.metrics[outcome.position])
            faults.setdefault(batch.positions[outcome.position], []).append(fault)
    if strict and faults:
        return Report(batch.received, batch.metrics, 0, 0, faults)
    return Report(batch.received, batch.metrics, batch.received - duplicates - len(faults), duplicates, faults)


def _fault(outcome: Outcome, metric: Metric) -> Fault:
    """What the database found wrong, in words."""
    metric_type, facts = metric["metric_type"], outcome.facts
    if outcome.kind == "unknown_user":
        field_name, detail = "user_id", f"user {metric['user_id']} is not registered"
    elif outcome.kind == "unknown_metric_type":
        field_name, detail = (
            "metric_type",
            f"metric type {metric_type} is {'retired' if facts['retired'] else 'not registered'}",
        )
    elif outcome.kind == "value_out_of_range":
        field_name, detail = "value", f"{metric_type} must be {_range(facts)}, got {shown(metric['value'])}"
    else:
        field_name, where = "metric_id", "stands earlier in the batch" if facts["repeat"] else "is stored already"
        detail = f"this metric {where} with another value, type or session"
    return Fault(outcome.kind, detail, field_name, str(metric["metric_id"]))


def _range(facts: dict[str, Any]) -> str:
    least, most = (bound if bound is None else f"{bound:.17g}" for bound in (facts["min"], facts["max"]))
    if facts["flag"]:
        return "0 or 1"
    if least is None:
        return f"at most {most}"
    return f"at least {least}" if most is None else f"between {least} and {most}"


def _completed(
    items: list[Metric],
    key: str | None,
    positions: Sequence[int] | None = None,
    faults: dict[int, list[Fault]] | None = None,
    received: int | None = None,
) -> Batch:
    """Fill in each metric's identity by its position in the request; those with a late timestamp become faults."""
    received = len(items) if received is None else received
    _check_size(received)
    positions = range(received) if positions is None else positions
    faults = {} if faults is None else faults
    latest = metrics.latest_acceptable(settings().max_future_skew_s)
    wrong = set()
    for position, metric in zip(positions, items, strict=True):
        fault = metrics.complete(metric, latest, key, position)
        if fault:
            faults[position] = [fault]
            wrong.add(position)
    if wrong:
        kept = [(p, metric) for p, metric in zip(positions, items, strict=True) if p not in wrong]
        positions, items = [p for p, _ in kept], [metric for _, metric in kept]
    return Batch(received, items, positions, faults)


def _taken_apart(items: list[Any], faults: dict[int, list[Fault]], key: str | None) -> Batch:
    """The batch of an array in which the items at the positions of `faults` are no metrics."""
    positions = [position for position in range(len(items)) if position not in faults]
    sound = _array().validate_json(to_json([items[position] for position in positions])) if positions else []
    faults = {position: _identified(found, items[position]) for position, found in faults.items()}
    return _completed(sound, key, positions, faults, len(items))


def _identified(faults: list[Fault], item: Any) -> list[Fault]:
    """The faults with the metric_id that the sender gave, so that it finds the metric again."""
    metric_id = item.get("metric_id") if isinstance(item, dict) else None
    if not isinstance(metric_id, str) or any(fault.field == "metric_id" for fault in faults):
        return faults
    return [Fault(fault.code, fault.detail, fault.field, metric_id) for fault in faults]


def _faults_by_position(error: ValidationError, enveloped: bool) -> dict[int, list[Fault]]:
    """The faults of single metrics. Raise RequestRefused where the whole document is at fault."""
    entries = error.errors(include_url=False, include_context=False, include_input=False)
    limit = settings().max_batch
    if any(entry["type"] == "too_long" for entry in entries):
        raise RequestRefused(Fault("too_many_metrics", f"a batch may have {limit} metrics at most")) from error
    found = metrics.faults(error, skip=1 if enveloped else 0)
    if None in found:
        first = found[None][0]
        if first.field is None and first.code == "invalid_field":
            first = Fault("invalid_field", 'send an array of metrics, or {"metrics": [...]}')
        raise RequestRefused(first, *found[None][1:]) from error
    return {position: faults for position, faults in found.items() if position is not None}


def _check_size(count: int) -> None:
    if not count:
        raise RequestRefused(Fault("empty_batch", "the batch has no metrics"))
    if count > settings().max_batch:
        raise RequestRefused(Fault("too_many_metrics", f"a batch may have {settings().max_batch} metrics at most"))


@cache
def _array() -> TypeAdapter[list[Metric]]:
    return TypeAdapter(Annotated[list[Metric], Field(max_length=settings().max_batch)])


@cache
def _envelope() -> TypeAdapter[Any]:
    class Envelope(TypedDict):
        __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]
        metrics: Annotated[list[Metric], Field(max_length=settings().max_batch)]

    return TypeAdapter(Envelope)
