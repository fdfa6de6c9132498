"""Reads request bodies into batches of metrics, without storing anything."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import islice
from typing import Annotated, Any

from pydantic import FailFast, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.model import metric
from metrics_ingest.model.metric import READER, Metric, MetricRow
from metrics_ingest.model.validation import (
    MAX_LISTED,
    ONE_ERROR,
    STRICT,
    RepeatedFields,
    has_no_repeats,
    parse_json,
    unknown_fields,
)
from metrics_ingest.settings import settings
from metrics_ingest.steps import Steps, at_once

ITEMS_PER_STEP = 200  # of the slow path, which takes at most 20 µs for each
METRICS_PER_STEP = 1_000
ONE = (0,)  # the positions of a batch of one metric
IS_OBJECT = re.compile(rb"[ \t\r\n]*\{")
IS_ARRAY = re.compile(rb"[ \t\r\n]*\[")


@dataclass(slots=True)
class Batch:
    """The metrics of one request: the valid ones' `rows` and `positions`, and the others' `faults` by position.

    `sent` has every metric by position as it was read: the bytes of a line or of a body, or an item of a JSON array.
    The faults of MAX_LISTED metrics are described; the lists of others are empty, and `unlisted` counts their faults.
    """

    sent: Sequence[Any]
    rows: list[MetricRow]
    positions: Sequence[int]
    faults: dict[int, list[Fault]]
    unlisted: int = 0

    @property
    def fault_count(self) -> int:
        """The number of all faults."""
        return self.unlisted + sum(map(len, self.faults.values()))

    @property
    def received(self) -> int:
        """The number of metrics in the request."""
        return len(self.sent)


def parse_one(body: bytes, key: str | None) -> Batch:
    """Read one metric. Raise RequestRefused with all its faults."""
    chosen = settings()
    try:
        one = READER.read(body)
    except RequestRefused as refused:
        if IS_ARRAY.match(body) and refused.code == "invalid_field":
            detail = "one metric is expected, a JSON object; send an array of metrics to /ingest_batch/"
            raise RequestRefused(Fault("invalid_field", detail)) from None
        raise
    rows, faults = metric.complete([one], ONE, key, chosen.max_future_skew_s, chosen.max_past_s)
    if faults:
        raise RequestRefused(*faults[0])
    return Batch([body], rows, ONE, faults)


def parse_many(body: bytes, key: str | None) -> Batch:
    """Read a JSON array of metrics, or {"metrics": [...]}. Raise RequestRefused if it is neither."""
    return at_once(parse_many_steps(body, key))


def parse_many_steps(body: bytes, key: str | None) -> Steps[Batch]:
    """Do as parse_many, in steps."""
    array, envelope = _adapters()
    with suppress(ValidationError):
        metrics = envelope.validate_json(body)["metrics"] if IS_OBJECT.match(body) else array.validate_json(body)
        yield
        if has_no_repeats(body, metrics):
            _check_count(len(metrics))
            return (yield from _complete(metrics, metrics, key))
    yield
    items = _items(body)
    yield
    return (yield from _validate_each(items, READER.read_item, READER.count_item, key))


def parse_lines(body: bytes, key: str | None) -> Batch:
    """Read NDJSON, one metric a line. A line that is not JSON is one rejected metric.

    Raise RequestRefused for an empty body or too many lines.
    """
    return at_once(parse_lines_steps(body, key))


def parse_lines_steps(body: bytes, key: str | None) -> Steps[Batch]:
    """Do as parse_lines, in steps."""
    if not body:
        raise RequestRefused(Fault("malformed_json", "the body is empty"))
    lines = list(islice(_filled_lines(body), settings().max_batch + 1))
    _check_count(len(lines))
    # A line could hold two metrics, and the next two a half each. Here it cannot: every "{" is at the start of a line,
    # so when there are as many metrics as lines, each of them begins a metric.
    if all(line.startswith(b"{") for line in lines) and body.count(b"{") == len(lines):
        with suppress(ValidationError):
            array, _ = _adapters()
            document = b"[" + b",".join(lines) + b"]"
            metrics = array.validate_json(document)
            yield
            if len(metrics) == len(lines) and has_no_repeats(document, metrics):
                return (yield from _complete(lines, metrics, key))
    yield
    return (yield from _validate_each(lines, READER.read, READER.count, key))


def _filled_lines(body: bytes) -> Iterator[bytes]:
    """The lines of NDJSON that are not blank, without the space around them. Only a line feed ends a line."""
    return filter(None, (line.strip(b" \t\r\n") for line in BytesIO(body)))


def _validate_each(
    items: Sequence[Any], read: Callable[[Any], Metric], count: Callable[[Any], Metric | int], key: str | None
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
            counted = count(item)
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
    batch = yield from _complete(items, list(valid.values()), key, list(valid))
    batch.faults |= faults
    batch.unlisted = unlisted
    return batch


def _complete(
    sent: Sequence[Any], metrics: list[Metric], key: str | None, positions: Sequence[int] = ()
) -> Steps[Batch]:
    """Fill in each metric's identity by its position in the request, and set apart those with a late fault."""
    positions = positions or range(len(metrics))
    chosen = settings()
    rows: list[MetricRow] = []
    faults: dict[int, list[Fault]] = {}
    for start in range(0, len(metrics), METRICS_PER_STEP):
        part = slice(start, start + METRICS_PER_STEP)
        new_rows, new_faults = metric.complete(
            metrics[part], positions[part], key, chosen.max_future_skew_s, chosen.max_past_s
        )
        rows += new_rows
        faults |= new_faults
        yield
    if faults:
        positions = [position for position in positions if position not in faults]
    return Batch(sent, rows, positions, faults)


def _items(body: bytes) -> list[Any]:
    """Parse a body that should be an array of metrics, or {"metrics": [...]}. Raise RequestRefused if it is neither."""
    document = parse_json(body)
    field = "metrics" if isinstance(document, dict) else None
    if field and field not in document and "metric_type" in document:
        detail = 'one metric; send an array of metrics, or {"metrics": [...]}, or one metric to /ingest/'
        raise RequestRefused(Fault("missing_field", detail, field))
    if field:
        faults = [] if field in document else [Fault("missing_field", "metrics is missing", field)]
        faults += document.faults() if isinstance(document, RepeatedFields) else []
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

    return TypeAdapter(Annotated[array, ONE_ERROR]), TypeAdapter(Annotated[Envelope, ONE_ERROR])
