"""Replies as CSV (RFC 4180)."""

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import to_json

# A spreadsheet takes a cell that begins like this for a formula, and names of users are written by anybody
# (OWASP, CSV Injection). An apostrophe in front makes it text.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def to_csv(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows with the same keys as CSV with a header; without rows it is empty."""
    text = io.StringIO(newline="")
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.writer(text)
            writer.writerow(row)
        writer.writerow([_cell(value) for value in row.values()])
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA_STARTS) else value
    return to_json(value).decode().strip('"') if not isinstance(value, list | dict) else to_json(value).decode()
