"""Reads files of metrics, in chunks of CHUNK metrics: NDJSON, CSV or a JSON document, compressed with gzip or not.

The chunks of a file are always the same for the same lines, and so are their Idempotency-Keys. A metric without
metric_id gets its identity from the key and its position in the chunk. A file that is loaded again is therefore stored
once, and a file that has grown stores the new metrics only. Its name, packing, encoding and line ends do not matter.
"""

import codecs
import hashlib
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click

from metrics_ingest.admin.csv_rows import METRIC_COLUMNS, csv_rows
from metrics_ingest.admin.lines import MAX_LINE_BYTES, Line, Unreadable, as_text, read_blocks, split_lines, text_fault
from metrics_ingest.errors import Fault

CHUNK = 1_000  # must not change: with another number, files loaded before would be stored a second time
# A chunk of lines up to SHORT_LINE_BYTES, and MAX_LINE_BYTES for all longer ones, is smaller than MAX_BODY_BYTES.
SHORT_LINE_BYTES = 8_192
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024  # a document is read as a whole: `load` needs three to four times its size
DOCUMENT = re.compile(rb'\s*(\[\s*[\]{]|\{\s*"metrics"\s*:)')  # anything else is NDJSON
ARRAY = re.compile(r'[ \t\n]*(\{[ \t\n]*"metrics"[ \t\n]*:[ \t\n]*)?\[[ \t\n]*')
SEPARATOR = re.compile(r"[ \t\n]*([,\]])[ \t\n]*")
# Finds the end of a JSON value. Numbers stay text, because a conversion costs time and can fail.
DECODER = json.JSONDecoder(parse_int=str, parse_float=str)


@dataclass(slots=True)
class Chunk:
    """Consecutive metrics of a file."""

    file: str
    idempotency_key: str
    lines: list[Line]
    bytes_read: int  # of the file, for this chunk; 0 when that is not known


def read_chunks(path: str, as_csv: bool, columns: Sequence[str] = METRIC_COLUMNS) -> Iterator[Chunk]:
    """Read a file, or standard input for `-`. CSV has `columns`. Raise ClickException when it cannot be read."""
    try:
        with click.open_file(path, "rb") as opened:
            raw: Any = opened if hasattr(opened, "peek") else io.BufferedReader(opened)
            blocks = read_blocks(raw)
            if as_csv or path.lower().removesuffix(".gz").endswith(".csv"):
                lines = csv_rows(split_lines(blocks), columns)
            else:
                lines = _json_lines(blocks)
            lines = _limit_size(lines)
            position = 0
            for number in itertools.count():
                chunk = list(itertools.islice(lines, CHUNK))
                if not chunk:
                    return
                key = f"load-{number}-{hashlib.sha256(chunk[0].metric).hexdigest()}"
                start, position = position, raw.tell() if raw.seekable() else 0
                yield Chunk(path, key, chunk, position - start)
    except (OSError, EOFError, zlib.error, Unreadable) as error:
        raise click.ClickException(f"{path}: {error}") from error


def parse_unique(text: bytes | str) -> Any:
    """Parse JSON. Raise ValueError also for a field that is in an object twice, of which json.loads keeps the last."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a field is there twice")
    return found


def _limit_size(lines: Iterable[Line]) -> Iterator[Line]:
    """Reject long lines beyond what a request can hold."""
    used = chunk = 0  # bytes of long lines in the current chunk
    for index, line in enumerate(lines):
        if len(line.metric) > SHORT_LINE_BYTES:
            if index // CHUNK != chunk:
                chunk, used = index // CHUNK, 0
            used += len(line.metric)
            if used > MAX_LINE_BYTES:
                detail = f"the line is too long: those above 8 KiB may have 1 MiB together in {CHUNK:,} lines"
                fault = line.fault or Fault("payload_too_large", detail)
                line = Line(line.number, json.dumps(as_text(line.metric)).encode(), fault)
        yield line


def _json_lines(blocks: Iterator[bytes]) -> Iterator[Line]:
    head = b""
    while len(head.lstrip()) < 64 and len(head) < MAX_LINE_BYTES and (block := next(blocks, b"")):
        head += block
    blocks = itertools.chain([head], blocks)
    if DOCUMENT.match(head):
        yield from _items(blocks)
        return
    for number, line in enumerate(split_lines(blocks), 1):
        line, fault = line.removeprefix(codecs.BOM_UTF8), text_fault(line)
        if stripped := line.strip():
            if fault:
                stripped = json.dumps(as_text(stripped)).encode()  # ingest_batch rejects a text
            elif stripped.startswith(b'{"errors":'):
                stripped, fault = _metric_of_entry(stripped)
            yield Line(number, stripped, fault)


def _metric_of_entry(line: bytes) -> tuple[bytes, Fault | None]:
    """Return the metric of an entry of the file that --rejected wrote; a damaged entry is rejected as it is."""
    try:
        entry = parse_unique(line)
        if "metric" not in entry:
            raise ValueError("metric is missing")
    except (ValueError, RecursionError) as error:
        return line, Fault("malformed_json", f"the entry is damaged: {error}")
    metric = entry["metric"]
    return (" ".join(metric.split()) if isinstance(metric, str) else json.dumps(metric)).encode(), None


def _items(blocks: Iterable[bytes]) -> Iterator[Line]:
    """Yield the items of an array of metrics, or {"metrics": [...]}, as they are. Raise Unreadable before the first."""
    data = bytearray()
    for block in blocks:
        data += block
        if len(data) > MAX_DOCUMENT_BYTES:
            limit = f"a JSON document may have {MAX_DOCUMENT_BYTES // 2**20} MiB"
            raise Unreadable(f"{limit}: write one metric a line instead, for example with jq -c '.[]'")
    try:
        text = io.IncrementalNewlineDecoder(None, translate=True).decode(data.decode(), final=True)
    except UnicodeDecodeError as error:
        number = len(data[: error.start + 1].splitlines())
        raise Unreadable(f"line {number} is not UTF-8 (byte 0x{data[error.start]:02x}): save it as UTF-8") from error
    del data
    spans = list(_spans(text))
    number, counted = 1, 0
    for start, end in spans:
        number, counted = number + text.count("\n", counted, start), start
        yield Line(number, text[start:end].replace("\n", " ").encode())


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the position of each item of the document. Raise Unreadable when the document is not complete and valid."""
    opening = ARRAY.match(text)
    at = opening.end() if opening else 0
    try:
        if not opening:
            raise json.JSONDecodeError("expected an array of metrics", text, at)
        delimiter = ","
        if text[at : at + 1] == "]":
            at, delimiter = at + 1, "]"
        while delimiter == ",":
            _, end = DECODER.raw_decode(text, at)
            yield at, end
            found = SEPARATOR.match(text, end)
            if not found:
                raise json.JSONDecodeError("expected a comma or ]", text, end)
            at, delimiter = found.end(), found[1]
        rest = text[at:].strip(" \t\n")
        if rest != ("}" if opening[1] else ""):
            raise json.JSONDecodeError("unexpected text after the metrics", text, at)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Unreadable(f"it is no valid JSON document ({where}: {error.msg}); nothing was sent") from error
    except RecursionError as error:
        raise Unreadable("it is nested too deeply; nothing was sent") from error
