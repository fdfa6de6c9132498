"""Validates JSON objects with pydantic and reports everything that is wrong with one of them as faults."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json, to_json

from metrics_ingest.errors import Fault, RequestRefused

STRICT = ConfigDict(extra="forbid", strict=True)
MAX_UNKNOWN_FIELDS = 10  # reported per object
MAX_LISTED = 1_000  # rejected metrics of a request whose faults are described, and faults that are listed
EXCERPT_CHARACTERS = 60
LARGE_OBJECT = 65_536  # bytes; of a larger one a ValidationError holds copies: 240 MB of 10 MB of wide characters

# For each field: the error code of an invalid value, and what is expected.
EXPECTED = {
    "user_id": ("invalid_uuid", "a UUID"),
    "session_id": ("invalid_uuid", "a UUID"),
    "metric_id": ("invalid_uuid", "a UUID"),
    "metric_type": ("invalid_metric_type", "a lower-case name like talked_time"),
    "value": ("invalid_value", "a finite number, true or false"),
    "timestamp": ("invalid_timestamp", "an RFC 3339 time with an offset, like 2024-08-08T12:34:56Z"),
    "name": ("invalid_field", "1 to 200 characters"),
    "email": ("invalid_field", "an e-mail address"),
}

Validated = TypeVar("Validated")


def parse_json(body: bytes) -> Any:
    """Parse a JSON text of any shape. Raise RequestRefused (malformed_json)."""
    try:
        return from_json(body)
    except ValueError as error:
        raise RequestRefused(Fault("malformed_json", f"Invalid JSON: {error}")) from error


def validate_json(adapter: TypeAdapter[Validated], fields: frozenset[str], body: bytes) -> Validated:
    """Validate a JSON object that may have these fields. Raise RequestRefused with all its faults."""
    if len(body) <= LARGE_OBJECT:
        with suppress(ValidationError):
            return adapter.validate_json(body)
    return validate_item(adapter, fields, parse_json(body))


def validate_item(adapter: TypeAdapter[Validated], fields: frozenset[str], item: Any) -> Validated:
    """Slow path: validate a parsed JSON value that may be wrong. Raise RequestRefused with all its faults.

    Pydantic gets only the known fields, because it makes an error object of each unknown one: listing the 160,000 of a
    body of 9 MB takes 290 MB of memory, without them it is 200 MB.
    """
    if not isinstance(item, dict):
        raise RequestRefused(Fault("invalid_field", "a JSON object is expected"))
    errors: dict[str, ErrorDetails] = {}
    try:
        validated = adapter.validate_json(to_json({name: item[name] for name in item if name in fields}))
    except ValidationError as error:
        errors = _by_field(error)
    if faults := list(_faults(errors, item, fields)):
        raise RequestRefused(*faults)
    return validated


def validate_or_count(adapter: TypeAdapter[Validated], fields: frozenset[str], item: Any) -> Validated | int:
    """Validate as validate_item, but return the number of faults that it would raise, in a quarter of the time."""
    if not isinstance(item, dict):
        return 1
    known = {name: item[name] for name in item if name in fields}
    unknown = min(len(item) - len(known), MAX_UNKNOWN_FIELDS)
    if not known:  # a body can have very many of these
        return unknown + _required(adapter)
    try:
        validated = adapter.validate_json(to_json(known))
    except ValidationError as error:
        return unknown + len(_by_field(error))
    return unknown or validated


@cache
def _required(adapter: TypeAdapter[Any]) -> int:
    """The number of faults of an object without fields."""
    try:
        adapter.validate_json("{}")
    except ValidationError as error:
        return error.error_count()
    return 0


def unknown_fields(names: Iterable[str], known: frozenset[str], metric_id: str | None = None) -> Iterator[Fault]:
    """The faults of unknown fields. At most ten unknown fields are reported per metric."""
    unknown = (name[:100] for name in names if name not in known)
    for name in islice(unknown, MAX_UNKNOWN_FIELDS):
        yield Fault("unknown_field", f"{name} is not a known field", name, metric_id)


def excerpt(value: object) -> str:
    """The value as JSON, for error details, cut to EXCERPT_CHARACTERS."""
    cut = value[:EXCERPT_CHARACTERS] if isinstance(value, str) else value
    text = to_json(cut, inf_nan_mode="constants").decode()
    return text if len(text) <= EXCERPT_CHARACTERS else text[: EXCERPT_CHARACTERS - 3] + "..."


def _by_field(error: ValidationError) -> dict[str, ErrorDetails]:
    """The errors by field. Of a union pydantic reports each branch: the last one stands for all of them."""
    return {str(each["loc"][0]): each for each in error.errors(include_url=False, include_input=False)}


def _faults(by_field: dict[str, ErrorDetails], item: dict[str, Any], fields: frozenset[str]) -> Iterator[Fault]:
    """The faults of one object in the order of its fields, with its metric_id, by which the sender can find it."""
    metric_id = None
    if "metric_id" in fields and "metric_id" in item and "metric_id" not in by_field:
        metric_id = str(UUID(item["metric_id"]))
    for name, error in by_field.items():
        match error["type"]:
            case "missing":
                code, detail = "missing_field", f"{name} is missing"
            case "greater_than_equal":
                code, detail = "timestamp_out_of_range", f"{name} must not be before {error['ctx']['ge']:.10}"
            case "less_than":
                code, detail = "timestamp_out_of_range", f"{name} must be before {error['ctx']['lt']:.10}"
            case _:
                code, expected = EXPECTED[name]
                detail = f"{name} must be {expected}, got {excerpt(item.get(name))}"
        yield Fault(code, detail, name, metric_id)
    yield from unknown_fields(item, fields, metric_id)
