"""From a body to metrics, and from the database's outcomes to an account of every one of them."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from io import BytesIO
from itertools import islice
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from typing_extensions import TypedDict

from metrics_ingest import metrics
from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.metrics import Metric, Row, shown
from metrics_ingest.service import Headers, fault_entry
from metrics_ingest.settings import settings
from metrics_ingest.store import Call, Commit, Outcome
from metrics_ingest.writer import writer

IS_OBJECT = re.compile(rb"[ \t\r\n]*\{")


@dataclass(slots=True)
class Batch:
    """What a request sent: the `rows` of well-formed metrics, their `positions`, and the others' faults by position."""

    received: int
    rows: list[Row]
    positions: Sequence[int]
    faults: dict[int, list[Fault]]


@dataclass(slots=True)
class Report:
    """What became of a batch: received = stored + duplicates + len(faults), but for a refused strict one."""

    received: int
    rows: list[Row]
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
    batch = _completed([metrics.read(body)], key)
    if batch.faults:
        raise RequestRefused(*batch.faults[0])
    return batch


def parse_many(body: bytes, key: str | None) -> Batch:
    """Read a JSON array of metrics, or {"metrics": [...]}. Raise RequestRefused where it is neither."""
    try:
        if enveloped := IS_OBJECT.match(body) is not None:
            items = _envelope().validate_json(body)["metrics"]
        else:
            items = _array().validate_json(body)
    except ValidationError as error:
        return _taken_apart(body, metrics.entries(error), key)
    if body.count(b'"') == metrics.quotation_marks(items) + 2 * enveloped:
        return _completed(items, key)
    return _taken_apart(body, [], key)


def parse_lines(body: bytes, key: str | None) -> Batch:
    """Read NDJSON: one metric a line, blank lines skipped. A line that cannot be read is one rejected metric."""
    if not body:
        raise RequestRefused(Fault("malformed_json", "the body is empty"))
    stripped = (line.strip(b" \t\r\n") for line in BytesIO(body))
    lines = list(islice(filter(None, stripped), settings().max_batch + 1))
    _check_size(len(lines))
    if all(line.startswith(b"{") for line in lines):
        with suppress(ValidationError):
            items = _array().validate_json(b"[" + b",".join(lines) + b"]")
            # With just these quotation marks nothing was overlooked, in which a line could begin; so each begins a
            # metric, and as many metrics as lines are one a line.
            if len(items) == len(lines) and body.count(b'"') == metrics.quotation_marks(items):
                return _completed(items, key)
    faults = {}
    read = {}
    for position, line in enumerate(lines):
        try:
            read[position] = metrics.read(line)
        except RequestRefused as refused:
            faults[position] = list(refused.faults)
    return _completed(list(read.values()), key, list(read), faults, len(lines))


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
    outcomes = await writer().write(Call.INGEST, batch.rows, commit) if batch.rows else []
    duplicates = 0
    faults = batch.faults
    for outcome in outcomes:
        if outcome.kind == "duplicate":
            duplicates += 1
        else:
            fault = _fault(outcome, batch.rows[outcome.position])
            faults.setdefault(batch.positions[outcome.position], []).append(fault)
    if strict and faults:
        return Report(batch.received, batch.rows, 0, 0, faults)
    return Report(batch.received, batch.rows, batch.received - duplicates - len(faults), duplicates, faults)


def _fault(outcome: Outcome, row: Row) -> Fault:
    """What the database found wrong, in words."""
    user_id, _, metric_id, _, metric_type, value = row
    facts = outcome.facts
    if outcome.kind == "unknown_user":
        field_name, detail = "user_id", f"user {UUID(bytes=user_id)} is not registered"
    elif outcome.kind == "unknown_metric_type":
        field_name, detail = (
            "metric_type",
            f"metric type {metric_type} is {'retired' if facts['retired'] else 'not registered'}",
        )
    elif outcome.kind == "value_out_of_range":
        field_name, detail = "value", f"{metric_type} must be {_range(facts)}, got {shown(value)}"
    else:
        # "Earlier" may be in another request: the writer merges what waits.
        field_name, detail = "metric_id", "this metric was sent before with another value, type or session"
    return Fault(outcome.kind, detail, field_name, str(UUID(bytes=metric_id)))


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
    rows, wrong = metrics.complete(items, positions, key, settings().max_future_skew_s)
    if wrong:
        kept = [(position, row) for position, row in zip(positions, rows, strict=True) if position not in wrong]
        positions, rows = [position for position, _ in kept], [row for _, row in kept]
    return Batch(received, rows, positions, {**(faults or {}), **wrong})


def _taken_apart(body: bytes, entries: list[metrics.Entry], key: str | None) -> Batch:
    """The batch of a document of which pydantic says `entries`, or which has fields that are not known.

    Raise RequestRefused where it is not single metrics that are at fault.
    """
    kind, message = entries[0][::2] if entries else ("", "")
    if kind == "json_invalid":
        raise RequestRefused(Fault("malformed_json", message))
    if kind == "too_long":
        raise _too_many()
    items = from_json(body)
    if enveloped := isinstance(items, dict):
        wrong = [] if "metrics" in items else [Fault("missing_field", "metrics is missing", "metrics")]
        wrong += metrics.unknown_fields(items, frozenset(["metrics"]))
        if wrong:
            raise RequestRefused(*wrong)
        items = items["metrics"]
    if not isinstance(items, list):
        detail, field_name = 'send an array of metrics, or {"metrics": [...]}', "metrics" if enveloped else None
        raise RequestRefused(Fault("invalid_field", detail, field_name))
    by_position: dict[int, list[metrics.Entry]] = {}
    for kind, path, message in entries:
        position, *rest = path[1:] if enveloped else path
        by_position.setdefault(int(position), []).append((kind, tuple(rest), message))
    found = (
        (position, metrics.item_faults(by_position.get(position, ()), item)) for position, item in enumerate(items)
    )
    faults = {position: wrong for position, wrong in found if wrong}
    positions = [position for position in range(len(items)) if position not in faults]
    sound = _array().validate_json(to_json([items[position] for position in positions]))
    return _completed(sound, key, positions, faults, len(items))


def _check_size(count: int) -> None:
    if not count:
        raise RequestRefused(Fault("empty_batch", "the batch has no metrics"))
    if count > settings().max_batch:
        raise _too_many()


def _too_many() -> RequestRefused:
    return RequestRefused(Fault("too_many_metrics", f"a batch may have {settings().max_batch} metrics at most"))


@cache
def _array() -> TypeAdapter[list[Metric]]:
    return TypeAdapter(Annotated[list[Metric], Field(max_length=settings().max_batch)])


@cache
def _envelope() -> TypeAdapter[Any]:
    class Envelope(TypedDict):
        __pydantic_config__ = metrics.CLOSED  # type: ignore[misc]  # pydantic's way for a TypedDict
        metrics: Annotated[list[Metric], Field(max_length=settings().max_batch)]

    return TypeAdapter(Envelope)
