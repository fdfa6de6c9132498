"""Validates JSON objects with pydantic and reports everything that is wrong with one of them as faults."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Annotated, Any, Generic, NotRequired, TypeVar
from uuid import UUID

from pydantic import ConfigDict, GetPydanticSchema, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, core_schema, from_json, to_json
from typing_extensions import TypedDict, get_type_hints

from metrics_ingest.errors import Fault, RequestRefused

STRICT = ConfigDict(extra="forbid", strict=True)
MAX_UNKNOWN_FIELDS = 10  # reported per object, and as many repeated ones
MAX_LISTED = 1_000  # rejected metrics of a request whose faults are described, and faults that are listed
EXCERPT_CHARACTERS = 60
LEAP_SECOND = re.compile(r"[0-9-]{10}[Tt ][0-9]{2}:[0-9]{2}:60")
OUT_OF_RANGE = ("greater_than_equal", "less_than")  # pydantic's errors about a timestamp that is well-formed

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


def _one_error(source: Any, handler: Callable[[Any], CoreSchema]) -> CoreSchema:
    return core_schema.custom_error_schema(
        handler(source), custom_error_type="invalid", custom_error_message="the slow path finds out what is wrong"
    )


def _with_one_error_a_field(source: Any) -> Any:
    """The TypedDict with ONE_ERROR for each field, so that the number of errors is that of invalid fields."""
    fields: dict[str, Any] = {}
    for name, kind in get_type_hints(source, include_extras=True).items():
        if name in source.__optional_keys__:  # the kind is NotRequired[…]
            fields[name] = NotRequired[Annotated[kind.__args__[0], ONE_ERROR]]
        elif name in source.__required_keys__ and name != "__pydantic_config__":
            fields[name] = Annotated[kind, ONE_ERROR]
    counted: Any = TypedDict("counted", fields)  # type: ignore[misc]  # a type made at run time
    counted.__pydantic_config__ = source.__pydantic_config__  # type: ignore[attr-defined]  # pydantic's way for a TypedDict
    return counted


# For fast paths: one error in place of all. Each error of an object holds a copy of what is wrong, so that the four
# missing fields of a metric with 10 MB of wide characters in an unknown one took 240 MiB; with one error it is 90 MiB.
ONE_ERROR = GetPydanticSchema(_one_error)


class RepeatedFields(dict[str, Any]):
    """A JSON object in which a field is sent more than once. As a dict it has the last value of each field."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs

    def faults(self) -> list[Fault]:
        """The faults of the repeated fields; at most ten are reported."""
        repeated = (name for name, count in Counter(name for name, _ in self.pairs).items() if count > 1)
        return [
            Fault("invalid_field", f"{name[:100]} is sent more than once", name[:100])
            for name in islice(repeated, MAX_UNKNOWN_FIELDS)
        ]


class ObjectReader(Generic[Validated]):
    """Validates the JSON objects of one TypedDict."""

    def __init__(self, source: type[Validated]) -> None:
        self._source = source
        self._full = TypeAdapter(source)
        self._fast: TypeAdapter[Validated] = TypeAdapter(Annotated[source, ONE_ERROR])  # type: ignore[arg-type]  # a type made at run time
        self._fields = frozenset(source.__annotations__) - {"__pydantic_config__"}
        self._required = len(source.__required_keys__ - {"__pydantic_config__"})  # type: ignore[attr-defined]  # a TypedDict's

    @cached_property
    def _counting(self) -> TypeAdapter[Validated]:  # made when it is needed: it would delay the start
        return TypeAdapter(_with_one_error_a_field(self._source))

    def read(self, body: bytes) -> Validated:
        """Validate a JSON text. Raise RequestRefused with all its faults."""
        try:
            validated = self._fast.validate_json(body)
        except ValidationError:
            validated = None  # outside of this block, because the error holds a copy of the body
        if validated is not None and has_no_repeats(body, [validated]):
            return validated
        return self.read_item(parse_json(body))

    def read_item(self, item: Any) -> Validated:
        """Slow path: validate a parsed JSON value that may be wrong. Raise RequestRefused with all its faults.

        Pydantic gets only the known fields, because it makes an error object of each unknown one: listing the 160,000
        of a body of 9 MB takes 290 MB of memory, without them it is 200 MB.
        """
        if not isinstance(item, dict):
            raise RequestRefused(Fault("invalid_field", "a JSON object is expected"))
        errors: list[ErrorDetails] = []
        try:
            validated = self._full.validate_json(to_json({name: item[name] for name in item if name in self._fields}))
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
        if faults := list(_faults(errors, item, self._fields)):
            raise RequestRefused(*faults)
        return validated

    def count(self, line: bytes) -> Validated | int:
        """Validate a JSON text without blanks around it as `read`, but return only the number of its faults."""
        if not (line.startswith(b"{") and line.endswith(b"}")):  # no object
            return 1
        try:
            item = from_json(line)
        except ValueError:
            return 1
        return self.count_item(item if line.count(b",") == _commas(item) else parse_json(line))

    def count_item(self, item: Any) -> Validated | int:
        """Validate as `read_item`, but return only the number of faults, in a quarter of the time."""
        if item == {}:  # a body can have very many of these, and of others without a known field
            return self._required
        if isinstance(item, RepeatedFields):  # these cost their sender more than a count costs
            try:
                return self.read_item(item)
            except RequestRefused as refused:
                return len(refused.faults)
        if not isinstance(item, dict):
            return 1
        known = {name: item[name] for name in item if name in self._fields}
        unknown = min(len(item) - len(known), MAX_UNKNOWN_FIELDS)
        if not known:
            return unknown + self._required
        try:
            validated = self._counting.validate_json(to_json(known))
        except ValidationError as error:
            return unknown + error.error_count()
        return unknown or validated


def has_no_repeats(text: bytes, objects: Iterable[Any]) -> bool:
    """Whether valid JSON text surely has no field twice; `objects` are the flat ones read from it: one, or an array.

    Pydantic reads the last value of a repeated field. But each has a comma of its own, and no valid metric has one in a
    value: n fields in one array have n - 1 commas. Where a text value has commas, a slow path must look again.
    """
    return text.count(b",") == sum(map(len, objects)) - 1


def parse_json(body: bytes) -> Any:
    """Parse a JSON text of any shape; an object with a field twice is a RepeatedFields.

    Raise RequestRefused (malformed_json).
    """
    try:
        document = from_json(body)
    except ValueError as error:
        hint = ""
        if "trailing characters" in str(error) and body.lstrip().startswith(b"{"):
            hint = "; NDJSON (one object a line) belongs to ingest_batch, with Content-Type: application/x-ndjson"
        raise RequestRefused(Fault("malformed_json", f"Invalid JSON: {error}{hint}")) from error
    if body.count(b",") > _commas(document):  # a field is repeated, or a text has commas
        return json.loads(body, object_pairs_hook=_object)
    return document


def _commas(document: Any) -> int:
    """The number of commas between the parts of a parsed JSON text."""
    commas = 0
    values = [document]
    for value in values:  # which grows: a recursion takes five times as long
        if value.__class__ is dict or value.__class__ is list:
            if len(value) > 1:
                commas += len(value) - 1
            values += value.values() if value.__class__ is dict else value
    return commas


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    item = dict(pairs)
    return item if len(item) == len(pairs) else RepeatedFields(pairs)


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


def _faults(errors: list[ErrorDetails], item: dict[str, Any], fields: frozenset[str]) -> Iterator[Fault]:
    """The faults of one object in the order of its fields, with its metric_id, by which the sender can find it."""
    repeated = item.faults() if isinstance(item, RepeatedFields) else []
    ambiguous = {fault.field for fault in repeated}
    by_field: dict[str, ErrorDetails] = {}  # one for each, because pydantic reports each branch of a union
    for error in errors:
        name = str(error["loc"][0])
        if name not in ambiguous and (name not in by_field or by_field[name]["type"] not in OUT_OF_RANGE):
            by_field[name] = error
    metric_id = None
    if "metric_id" in fields - ambiguous - by_field.keys() and item.get("metric_id") is not None:
        metric_id = str(UUID(item["metric_id"]))
    for fault in repeated:
        yield replace(fault, metric_id=metric_id)
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
                if name == "timestamp" and isinstance(item[name], str) and LEAP_SECOND.match(item[name]):
                    detail = f"{name} is a leap second (:60), which cannot be stored; got {excerpt(item[name])}"
        yield Fault(code, detail, name, metric_id)
    yield from unknown_fields(item, fields, metric_id)
