"""Converts CSV (RFC 4180, a comma between the cells) to metrics.

The reader is strict, because a lenient one stores wrong values: what is not exactly a row of the header's columns is
rejected with its reason, and the rows around it are read as if it were not there.
"""

import csv
import json
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from metrics_ingest.admin.lines import Line, Unended, Unreadable, as_text, text_fault
from metrics_ingest.errors import Fault

METRIC_COLUMNS = ("user_id", "metric_type", "value", "timestamp", "session_id", "metric_id")
IGNORED_COLUMNS = ("received_at",)
OTHER_SEPARATORS = (";", "\t", "|")
# JSON's numbers, and also a leading `+`, `.5`, `5.` and spaces around.
NUMBER = re.compile(r"[ \t]*[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*", re.ASCII)
LINES_PER_ROW = 20  # a quote that is not closed within so many lines is a fault of its own line


def csv_rows(lines: Iterable[bytes], names: Sequence[str] = METRIC_COLUMNS) -> Iterator[Line]:
    """Yield the rows, as objects of the fields `names`. Raise Unreadable when the first line with text is no header."""
    numbered = enumerate(lines, 1)
    ahead: deque[tuple[int, bytes]] = deque()
    columns: list[str] = []

    def take() -> tuple[int, bytes] | None:
        return ahead.popleft() if ahead else next(numbered, None)

    while taken := take():
        number, line = taken
        if not line.strip():
            continue
        if not columns:
            columns = _columns(line, names)
            continue
        more: list[tuple[int, bytes]] = []  # the further lines of a row that has line breaks in quotes
        whole = line
        while whole.count(b'"') % 2 and len(more) < LINES_PER_ROW and (following := take()):
            more.append(following)
            whole = whole + b"\n" + following[1]
        ended = not isinstance(more[-1][1] if more else line, Unended)
        row = _row(number, whole, columns, names, ended)
        if row.fault and more:
            ahead.extendleft(reversed(more))
            row = _row(number, line, columns, names, True)
        yield row


def _columns(header: bytes, names: Sequence[str]) -> list[str]:
    if fault := text_fault(header):
        raise Unreadable(f"the header cannot be read: {fault.detail}")
    try:
        cells = next(csv.reader([header.decode()], strict=True))
    except csv.Error as error:
        raise Unreadable(f"the header cannot be read: {error}") from error
    columns = [cell.strip().lower() for cell in cells]
    if len(columns) == 1:
        for separator in OTHER_SEPARATORS:
            if separator in columns[0]:
                raise Unreadable(f"its columns are separated by {separator!r}: save it with commas between them")
    if unknown := sorted(set(columns) - {*names, *IGNORED_COLUMNS}):
        wrong = ", ".join(name or "one without a name" for name in unknown)
        raise Unreadable(f"the columns of a CSV file must be among {', '.join(names)}, not {wrong[:200]}")
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise Unreadable(f"a column of a CSV file must not be there twice: {', '.join(twice)}")
    return columns


def _row(number: int, line: bytes, columns: list[str], names: Sequence[str], ended: bool) -> Line:
    """Convert a row. An empty cell means that the field is absent. Without a line end, the row may have been cut."""
    fault = text_fault(line)
    if not fault:
        try:
            cells = next(csv.reader([line.decode()], strict=True))
        except csv.Error as error:
            fault = Fault("invalid_field", f"the row is not valid CSV: {error}")
        else:
            if len(cells) == len(columns) and not ended and _may_be_cut(columns[-1], cells[-1]):
                detail = "the last line has no line end, so it may be cut: add one if it is complete"
                fault = Fault("invalid_field", detail)
            elif len(cells) == len(columns):
                row = dict(zip(columns, cells, strict=True))
                metric: dict[str, Any] = {name: row[name] for name in names if row.get(name)}
                if "value" in metric:
                    metric["value"] = _value(metric["value"])
                return Line(number, json.dumps(metric).encode())
            else:
                detail = f"the row has {len(cells)} cells, but the header has {len(columns)}"
                fault = Fault("invalid_field", detail + '; a cell with a comma needs quotes: "12,5"')
    return Line(number, json.dumps(as_text(line)).encode(), fault)  # ingest_batch rejects a text


def _may_be_cut(column: str, cell: str) -> bool:
    """Whether the cell may be the beginning of another one that is valid, as 12 is of 12.5."""
    if column in ("timestamp", "created_at"):
        return not cell.endswith(("Z", "z"))
    return not cell if column in ("user_id", "session_id", "metric_id") else column not in IGNORED_COLUMNS


def _value(text: str) -> Any:
    """Convert a number, true or false. Return other text as it is; ingest_batch rejects it, with the reason."""
    if NUMBER.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else text
    lower = text.strip().lower()
    return lower == "true" if lower in ("true", "false") else text
