"""From a body to metrics, and from the database's outcomes to an account of every one of them."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import islice
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from typing_extensions import TypedDict

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.model import metric
from metrics_ingest.model.metric import Metric, Row
from metrics_ingest.settings import settings

IS_OBJECT = re.compile(rb"[ \t\r\n]*\{")


@dataclass(slots=True)
class Batch:
    """What a request sent: the `rows` of well-formed metrics, their `positions`, and the others' faults by position."""

    received: int
    rows: list[Row]
    positions: Sequence[int]
    faults: dict[int, list[Fault]]


def parse_one(body: bytes, key: str | None) -> Batch:
    """Read one metric. Raise RequestRefused with all its faults."""
    batch = _completed([metric.read(body)], key)
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
        return _taken_apart(body, metric.entries(error), key)
    if body.count(b'"') == metric.quotation_marks(items) + 2 * enveloped:
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
            if len(items) == len(lines) and body.count(b'"') == metric.quotation_marks(items):
                return _completed(items, key)
    faults = {}
    read = {}
    for position, line in enumerate(lines):
        try:
            read[position] = metric.read(line)
        except RequestRefused as refused:
            faults[position] = list(refused.faults)
    return _completed(list(read.values()), key, list(read), faults, len(lines))


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
    rows, wrong = metric.complete(items, positions, key, settings().max_future_skew_s)
    if wrong:
        kept = [(position, row) for position, row in zip(positions, rows, strict=True) if position not in wrong]
        positions, rows = [position for position, _ in kept], [row for _, row in kept]
    return Batch(received, rows, positions, {**(faults or {}), **wrong})


def _taken_apart(body: bytes, entries: list[metric.Entry], key: str | None) -> Batch:
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
        wrong += metric.unknown_fields(items, frozenset(["metrics"]))
        if wrong:
            raise RequestRefused(*wrong)
        items = items["metrics"]
    if not isinstance(items, list):
        detail, field_name = 'send an array of metrics, or {"metrics": [...]}', "metrics" if enveloped else None
        raise RequestRefused(Fault("invalid_field", detail, field_name))
    by_position: dict[int, list[metric.Entry]] = {}
    for kind, path, message in entries:
        position, *rest = path[1:] if enveloped else path
        by_position.setdefault(int(position), []).append((kind, tuple(rest), message))
    found = ((position, metric.item_faults(by_position.get(position, ()), item)) for position, item in enumerate(items))
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
        __pydantic_config__ = metric.CLOSED  # type: ignore[misc]  # pydantic's way for a TypedDict
        metrics: Annotated[list[Metric], Field(max_length=settings().max_batch)]

    return TypeAdapter(Envelope)
