"""Reads a file as lines of UTF-8, whatever its packing, encoding and line ends are.

The same text therefore gives the same lines, and so the same chunks and Idempotency-Keys (files.py).
"""

import codecs
import gzip
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from metrics_ingest.errors import Fault

BLOCK_BYTES = 65_536
MAX_LINE_BYTES = 1024 * 1024  # bounds the memory; a metric has some 250 bytes
MAX_QUOTED = 1_000  # bytes of a line that is too long, sent and written to the file of rejected metrics
GZIP = b"\x1f\x8b"
UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
# UTF-16 without a mark: the first character of a file of metrics is ASCII, so one of its two bytes is NUL.
NUL_FIRST, NUL_SECOND = "utf-16-be", "utf-16-le"


class Unreadable(Exception):
    """The file as a whole cannot be read; the text says why."""


class Unended(bytes):
    """The last line of a file, when nothing ends it: it may have been cut."""


class Line(NamedTuple):
    """One metric of a file, as it is sent: JSON without line breaks.

    With a fault, ingest_batch rejects the metric, too, but the fault says more precisely what is wrong.
    """

    number: int  # counted from 1
    metric: bytes
    fault: Fault | None = None


def read_blocks(raw: Any) -> Iterator[bytes]:
    """Yield the text of an io.BufferedReader as blocks of UTF-8: unpacked, decoded, without byte order mark.

    Raise Unreadable for UTF-32, OSError, EOFError and zlib.error for a damaged gzip file.
    """
    file = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == GZIP else raw
    head = b""
    while len(head) < 4 and (block := file.read1(BLOCK_BYTES)):
        head += block
    if head.startswith(UTF32_MARKS):
        raise Unreadable("it is UTF-32, which is not read here: save it as UTF-8")
    encoding = NUL_FIRST if head[:1] == b"\0" else NUL_SECOND if head[1:2] == b"\0" else "utf-8"
    for mark, marked in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            encoding, head = marked, head.removeprefix(mark)
    blocks = itertools.chain([head], iter(lambda: file.read1(BLOCK_BYTES), b""))
    return blocks if encoding == "utf-8" else _utf8(blocks, encoding)


def _utf8(blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Convert blocks of UTF-16. Half a character becomes bytes that are no UTF-8, so that its line is reported."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    try:
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        yield b"\xff"


def split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines without their ends, which are LF, CRLF or CR; a last one without an end is Unended.

    A line of more than MAX_LINE_BYTES is cut.
    """
    rest = b""
    for block in blocks:
        lines = (rest + block).splitlines(keepends=True)
        rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        for line in lines:
            yield line.rstrip(b"\r\n")[: MAX_LINE_BYTES + 1]
        if len(rest) > MAX_LINE_BYTES + 1:  # what ends with CR may go on with LF
            rest = rest[: MAX_LINE_BYTES + 1] + (b"\r" if rest.endswith(b"\r") else b"")
    if rest:
        yield rest.removesuffix(b"\r") if rest.endswith(b"\r") else Unended(rest)


def text_fault(line: bytes) -> Fault | None:
    """Return what is wrong with a line as text: it is too long, or not UTF-8."""
    if len(line) > MAX_LINE_BYTES:
        return Fault("payload_too_large", "the line has more than 1 MiB")
    if line.isascii():  # the usual case, in a third of the time of decode()
        return None
    try:
        line.decode()
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start + 1} of the line, 0x{line[error.start]:02x}, is not UTF-8"
        return Fault("malformed_json", f"{wrong}: save the file as UTF-8")
    return None


def as_text(line: bytes) -> str:
    """Return the beginning of a line that is not sent as it is."""
    return line[:MAX_QUOTED].decode(errors="replace")
