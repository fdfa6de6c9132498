"""Parameters of a query string, each read with its limits and its default; whatever is wrong raises RequestRefused."""

import base64
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NoReturn
from urllib.parse import parse_qsl
from uuid import UUID

from metrics_ingest.errors import Fault, RequestRefused

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)  # no metric is older
LATEST = datetime(2200, 1, 1, tzinfo=UTC)
DEFAULT_RANGE = 7 * DAY
MAX_PARAMETERS = 20
INSTANT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d(:\d\d([.]\d{1,9})?)?([Zz]|[+-]\d\d(:?\d\d)?)", re.ASCII)
CODE = re.compile(r"[a-z_]{1,64}", re.ASCII)
METRIC_TYPE = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)


def refuse(code: str, detail: str, field: str | None = None) -> NoReturn:
    """Raise RequestRefused with one fault."""
    raise RequestRefused(Fault(code, detail, field))


@dataclass(frozen=True, slots=True)
class Range:
    """The times from `start` up to, but not including, `end`; both are UTC."""

    start: datetime
    end: datetime

    def outward(self, step: timedelta) -> "Range":
        """The whole steps (hours or days, in UTC) that the range touches."""
        return Range(_floor(self.start, step), _ceiling(self.end, step))

    def inward(self, step: timedelta) -> "Range":
        """The whole steps that the range covers; when there are none, an empty range at `end`."""
        start, end = _ceiling(self.start, step), _floor(self.end, step)
        return Range(start, end) if start < end else Range(self.end, self.end)

    @property
    def length(self) -> timedelta:
        """How long it is."""
        return self.end - self.start


def _floor(instant: datetime, step: timedelta) -> datetime:
    return instant - (instant - EARLIEST) % step


def _ceiling(instant: datetime, step: timedelta) -> datetime:
    return instant + (EARLIEST - instant) % step


class Parameters:
    """The parameters of one request. Those that `allowed` does not name are refused, and so are repeated ones."""

    def __init__(self, query_string: bytes, allowed: Collection[str]) -> None:
        try:
            pairs = parse_qsl(
                query_string.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS
            )
        except ValueError:
            refuse(
                "invalid_field", f"the query string is not at most {MAX_PARAMETERS} percent-encoded UTF-8 parameters"
            )
        self._values = dict(pairs)
        for name, _ in pairs:
            if name not in allowed:
                refuse("unknown_field", f"no such parameter here; there are {', '.join(sorted(allowed))}", name[:64])
        if len(self._values) != len(pairs):
            refuse("invalid_field", "a parameter is given twice")

    def has(self, name: str) -> bool:
        """Whether the parameter is given."""
        return name in self._values

    def text(self, name: str, longest: int = 200) -> str | None:
        """A text without control characters, or None when it is absent or empty."""
        value = self._values.get(name, "").strip()
        if len(value) > longest or "\0" in value:
            refuse("invalid_field", f"{name} must have at most {longest} characters, and no NUL", name)
        return value or None

    def choice(self, name: str, choices: Collection[str], default: str) -> str:
        """One of the choices."""
        value = self._values.get(name, default)
        if value not in choices:
            refuse("invalid_field", f"{name} must be one of {', '.join(choices)}, not {value[:40]!r}", name)
        return value

    def code(self) -> str | None:
        """An error code, or None for all."""
        value = self._values.get("code")
        if value is not None and not CODE.fullmatch(value):
            refuse("invalid_field", f"code must be an error code such as unknown_user, not {value[:40]!r}", "code")
        return value

    def integer(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number from `least` to `most`."""
        value = self._values.get(name)
        if value is None:
            return default
        if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
            refuse("invalid_field", f"{name} must be a whole number from {least} to {most}, not {value[:40]!r}", name)
        return int(value)

    def uuid(self, name: str) -> UUID:
        """A UUID, which must be given."""
        value = self._values.get(name)
        if value is None:
            refuse("missing_field", f"{name} is missing; it must be a UUID", name)
        try:
            return UUID(value)
        except ValueError:
            refuse("invalid_uuid", f"{name} must be a UUID, not {value[:40]!r}", name)

    def metric_type(self, *, required: bool) -> str | None:
        """The name of a metric type; whether it is registered is for the database to say."""
        value = self._values.get("metric_type")
        if value is None:
            if required:
                refuse("missing_field", "metric_type is missing; api/types lists those that exist", "metric_type")
            return None
        if not METRIC_TYPE.fullmatch(value):
            refuse(
                "invalid_metric_type",
                f"metric_type must match [a-z][a-z0-9_]{{0,63}}, not {value[:70]!r}",
                "metric_type",
            )
        return value

    def range(self, default_length: timedelta = DEFAULT_RANGE) -> Range:
        """`from` and `to`: by default `to` is the end of the current hour, and `from` seven days before `to`."""
        end = self._instant("to") or _ceiling(datetime.now(UTC), HOUR)
        start = self._instant("from") or max(end - default_length, EARLIEST)
        if start >= end:
            refuse(
                "invalid_field",
                f"from must be before to, but {start.isoformat()} is not before {end.isoformat()}",
                "from",
            )
        return Range(start, end)

    def _instant(self, name: str) -> datetime | None:
        value = self._values.get(name)
        if value is None:
            return None
        value = re.sub(r" (?=\d\d(:?\d\d)?$)", "+", value)  # a "+" that was not percent-encoded
        try:
            if not INSTANT.fullmatch(value):
                raise ValueError
            instant = datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            refuse(
                "invalid_timestamp",
                f"{name} must be a time such as 2024-08-08T12:00:00Z, with its offset, not {value[:40]!r}",
                name,
            )
        if not EARLIEST <= instant <= LATEST:
            refuse("timestamp_out_of_range", f"{name} must lie between {EARLIEST.year} and {LATEST.year}", name)
        return instant

    def after(self, order: str, kinds: Sequence[Callable[[str], object]]) -> list[str] | None:
        """The position that a cursor of the same list in the same order names, or None for the beginning.

        `kinds` says what each part must be readable as: float, UUID, str.
        """
        value = self._values.get("after")
        if value is None:
            return None
        try:
            made_for, *position = json.loads(base64.b64decode(value.encode("ascii"), b"-_", validate=True))
            if made_for == order and all(isinstance(part, str) and "\0" not in part for part in position):
                for kind, part in zip(kinds, position, strict=True):
                    kind(part)
                return list(position)
        except (ValueError, TypeError, RecursionError):
            pass
        refuse("invalid_field", "after must be the `next` of a reply for the same list in the same order", "after")


def cursor(order: str, *position: object) -> str:
    """A position in a list, as a client gives it back in `after`."""
    return base64.urlsafe_b64encode(json.dumps([order, *map(str, position)]).encode()).decode()


def instant(text: str) -> datetime:
    """A time as a cursor has it. Raise ValueError."""
    value = datetime.fromisoformat(text)
    if value.tzinfo is None:
        raise ValueError(text)
    return value
