"""Reads request bodies into batches of metrics, without storing anything."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from itertools import islice
from typing import Annotated, Any

from pydantic import FailFast, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.model import metric
from metrics_ingest.model.metric import FIELDS, METRIC, Metric, MetricRow
from metrics_ingest.model.validation import MAX_LISTED, STRICT, parse_json, unknown_fields, validate_item
from metrics_ingest.settings import settings
from metrics_ingest.steps import Steps, at_once

ITEMS_PER_STEP = 200  # of the slow path, which takes at most 20 µs for each
METRICS_PER_STEP = 1_000
IS_OBJECT = re.compile(rb"[ \t\r\n]*\{")


@dataclass(slots=True)
class Batch:
    """The metrics of one request: the valid ones' `rows` and `positions`, and the others' `faults` by position.

    The faults of MAX_LISTED metrics are described; the lists of others are empty, and `unlisted` counts their faults.
    """

    received: int
    rows: list[MetricRow]
    positions: Sequence[int]
    faults: dict[int, list[Fault]]
    unlisted: int = 0

    @property
    def fault_count(self) -> int:
        """The number of all faults."""
        return self.unlisted + sum(map(len, self.faults.values()))


def parse_one(body: bytes, key: str | None) -> Batch:
    """Read one metric. Raise RequestRefused with all its faults."""
    rows, faults = metric.complete([metric.read(body)], range(1), key, settings().max_future_skew_s)
    if faults:
        raise RequestRefused(*faults[0])
    return Batch(1, rows, range(1), {})


def parse_many(body: bytes, key: str | None) -> Batch:
    """Read a JSON array of metrics, or {"metrics": [...]}. Raise RequestRefused if it is neither."""
    return at_once(parse_many_steps(body, key))


def parse_many_steps(body: bytes, key: str | None) -> Steps[Batch]:
    """Do as parse_many, in steps."""
    try:
        array, envelope = _adapters()
        metrics = envelope.validate_json(body)["metrics"] if IS_OBJECT.match(body) else array.validate_json(body)
    except ValidationError:
        yield
        read = partial(validate_item, METRIC, FIELDS)
        return (yield from _validate_each(read, metric.count_item_faults, _items(body), key))
    _check_count(len(metrics))
    yield
    return (yield from _complete(metrics, key))


def parse_lines(body: bytes, key: str | None) -> Batch:
    """Read NDJSON, one metric a line. A line that is not JSON is one rejected metric.

    Raise RequestRefused for an empty body or too many lines.
    """
    return at_once(parse_lines_steps(body, key))


def parse_lines_steps(body: bytes, key: str | None) -> Steps[Batch]:
    """Do as parse_lines, in steps."""
    if not body:
        raise RequestRefused(Fault("malformed_json", "the body is empty"))
    lines = list(islice(filled_lines(body), settings().max_batch + 1))
    _check_count(len(lines))
    # A line could hold two metrics, and the next two a half each. Here it cannot: every "{" is at the start of a line,
    # so when there are as many metrics as lines, each of them begins a metric.
    if all(line.startswith(b"{") for line in lines) and body.count(b"{") == len(lines):
        with suppress(ValidationError):
            array, _ = _adapters()
            metrics = array.validate_json(b"[" + b",".join(lines) + b"]")
            if len(metrics) == len(lines):
                yield
                return (yield from _complete(metrics, key))
    yield
    return (yield from _validate_each(metric.read, metric.count_faults, lines, key))


def filled_lines(body: bytes) -> Iterator[bytes]:
    """The lines of NDJSON that are not blank, without the space around them."""
    return filter(None, (line.strip(b" \t\r\n") for line in BytesIO(body)))


def _validate_each(
    read: Callable[[Any], Metric], count_faults: Callable[[Any], Metric | int], items: Sequence[Any], key: str | None
) -> Steps[Batch]:
    """Slow path: validate item by item, after the whole batch failed. Only count the faults after MAX_LISTED items."""
    _check_count(len(items))
    valid: dict[int, Metric] = {}
    faults: dict[int, list[Fault]] = {}
    unlisted = 0
    for position, item in enumerate(items):
        if position % ITEMS_PER_STEP == 0:
            yield
        if len(faults) >= MAX_LISTED:
            counted = count_faults(item)
            if isinstance(counted, int):
                faults[position] = []
                unlisted += counted
            else:
                valid[position] = counted
            continue
        try:
            valid[position] = read(item)
        except RequestRefused as refused:
            faults[position] = list(refused.faults)
    yield
    batch = yield from _complete(list(valid.values()), key, list(valid))
    return Batch(len(items), batch.rows, batch.positions, faults | batch.faults, unlisted)


def _complete(metrics: list[Metric], key: str | None, positions: Sequence[int] | None = None) -> Steps[Batch]:
    """Fill in each metric's identity by its position in the request, and set apart those with a late fault."""
    positions = range(len(metrics)) if positions is None else positions
    rows: list[MetricRow] = []
    faults: dict[int, list[Fault]] = {}
    for start in range(0, len(metrics), METRICS_PER_STEP):
        part = slice(start, start + METRICS_PER_STEP)
        new_rows, new_faults = metric.complete(metrics[part], positions[part], key, settings().max_future_skew_s)
        rows += new_rows
        faults |= new_faults
        yield
    if faults:
        positions = [position for position in positions if position not in faults]
    return Batch(len(metrics), rows, positions, faults)


def _items(body: bytes) -> list[Any]:
    """Parse a body that should be an array of metrics, or {"metrics": [...]}. Raise RequestRefused if it is neither."""
    document = parse_json(body)
    field = "metrics" if isinstance(document, dict) else None
    if field:
        faults = [] if field in document else [Fault("missing_field", "metrics is missing", field)]
        if faults := [*faults, *unknown_fields(document, frozenset([field]))]:
            raise RequestRefused(*faults)
        document = document[field]
    if not isinstance(document, list):
        raise RequestRefused(Fault("invalid_field", 'send an array of metrics, or {"metrics": [...]}', field))
    return document


def _check_count(count: int) -> None:
    """Raise RequestRefused if a batch may not have so many metrics."""
    if not count:
        raise RequestRefused(Fault("empty_batch", "the batch has no metrics"))
    if count > (most := settings().max_batch):
        raise RequestRefused(Fault("too_many_metrics", f"a batch may have at most {most} metrics"))


@cache
def _adapters() -> tuple[TypeAdapter[list[Metric]], TypeAdapter[Any]]:
    """Of [...] and of {"metrics": [...]}. Both fail at the first invalid metric: the slow path looks at all of them."""
    array = Annotated[list[Metric], Field(max_length=settings().max_batch), FailFast()]

    class Envelope(TypedDict):
        __pydantic_config__ = STRICT  # type: ignore[misc]  # pydantic's way for a TypedDict
        metrics: array

    return TypeAdapter(array), TypeAdapter(Envelope)
