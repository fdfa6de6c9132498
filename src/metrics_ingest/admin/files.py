"""Reads files of metrics: NDJSON or CSV, compressed with gzip or not, in chunks of CHUNK metrics.

The chunks of a file are always the same for the same lines, and so are their Idempotency-Keys. A metric without
metric_id gets its identity from the key and its position in the chunk. A file that is loaded again is therefore stored
once, and a file that has grown stores the new metrics only.
"""

import csv
import gzip
import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click

CHUNK = 1_000  # must not change: with another number, files loaded before would be stored a second time
FIELDS = ("user_id", "metric_type", "value", "timestamp", "session_id", "metric_id")
IGNORED_COLUMNS = ("received_at",)
Line = tuple[int, bytes]  # the number of a line, counted from 1, and its metric as JSON


@dataclass(slots=True)
class Chunk:
    """Consecutive metrics of a file, as JSON, with the numbers of their lines, counted from 1."""

    file: str
    idempotency_key: str
    metrics: list[bytes]
    lines: list[int]
    bytes_read: int  # of the file, for this chunk; 0 when that is not known


def read_chunks(path: str, as_csv: bool) -> Iterator[Chunk]:
    """Read a file, or standard input for `-`. Raise ClickException when it cannot be read."""
    try:
        with click.open_file(path, "rb") as opened:
            raw: Any = opened if hasattr(opened, "peek") else io.BufferedReader(opened)
            file: Any = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            if as_csv or path.removesuffix(".gz").endswith(".csv"):
                text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
                lines = _csv_lines(text, path)
            else:
                lines = _json_lines(file)
            position = 0
            for number in itertools.count():
                chunk = list(itertools.islice(lines, CHUNK))
                if not chunk:
                    return
                key = f"load-{number}-{hashlib.sha256(chunk[0][1]).hexdigest()}"
                start, position = position, raw.tell() if raw.seekable() else 0
                yield Chunk(path, key, [metric for _, metric in chunk], [line for line, _ in chunk], position - start)
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise click.ClickException(f"{path}: {error}") from error


def _json_lines(file: Iterable[bytes]) -> Iterator[Line]:
    for number, line in enumerate(file, 1):
        line = line.strip()
        if line.startswith(b'{"errors":'):  # an entry of the file that --rejected wrote
            with suppress(ValueError, KeyError):  # damaged while it was edited: it is sent as it is, and rejected
                metric = json.loads(line)["metric"]
                line = (" ".join(metric.split()) if isinstance(metric, str) else json.dumps(metric)).encode()
        if line:
            yield number, line


def _csv_lines(text: Iterable[str], path: str) -> Iterator[Line]:
    """Convert CSV rows to JSON. An empty cell means that the field is absent."""
    rows = csv.DictReader(text)
    if unknown := set(rows.fieldnames or ()) - {*FIELDS, *IGNORED_COLUMNS}:
        columns = f"the columns of a CSV file must be among {', '.join(FIELDS)}, not {', '.join(sorted(unknown))}"
        raise click.ClickException(f"{path}: {columns}")
    for row in rows:
        metric: dict[str, Any] = {name: row[name] for name in FIELDS if row.get(name)}
        if "value" in metric:
            metric["value"] = _value(metric["value"])
        yield rows.line_num, json.dumps(metric).encode()


def _value(text: str) -> Any:
    """Convert a number, `true` or `false`. Return other text as it is; ingest_batch rejects it, with the reason."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text
