"""Read request bodies within limits: size, memory, time, and number of JSON values.

A parser makes up to 150 bytes of objects out of one byte of JSON (measured: 10 MB of `[],[],…` became 500 MB, a million
keys 1.6 GB), so the number of values is limited, before parsing, to what the metrics of a valid body can have.
"""

import zlib
from codecs import BOM_UTF8
from dataclasses import dataclass

from pydantic_core import from_json
from starlette.requests import Request

from metrics_ingest.errors import Fault, Overloaded, RequestRefused
from metrics_ingest.http.headers import Headers, is_gzip
from metrics_ingest.server.deadlines import body_deadlines
from metrics_ingest.server.short_path import short_path
from metrics_ingest.steps import Steps, at_once, in_turns

SMALL = 65_536  # bytes; a body up to this size that has arrived is neither counted nor checked: it can do no harm
LARGE_BODIES = 4  # times MAX_BODY_BYTES: the memory of all other bodies of a function together
ARRIVING_BODIES = 3  # of these: the memory of those that have not arrived as a whole
LENGTH_DIGITS = 19  # of a Content-Length; int() raises ValueError for more than 4,300
UNPACKED_PER_STEP = 1_048_576  # bytes
GZIP_MAGIC = b"\x1f\x8b"
GZIP_MEMBERS = 4_096  # of one body; each costs a decompressor
VALUES_PER_METRIC = 16  # a valid metric has 6; the rest allows for reporting unknown fields of each metric
NESTED_PER_METRIC = 4


class Memory:
    """The bytes that all large bodies of a function may hold together, each until its request is answered.

    Bodies that have not arrived as a whole may hold only a part of it, because a client can leave them unfinished.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self.free = LARGE_BODIES * max_body_bytes
        self.free_for_arriving = ARRIVING_BODIES * max_body_bytes


@dataclass(slots=True)
class Reservation:
    """The bytes that one request holds of a Memory. The caller must `release` them when it has answered."""

    memory: Memory
    size: int = 0
    arriving: int = 0  # of them

    def add(self, size: int, *, arriving: bool = False) -> None:
        """Reserve `size` more bytes, dropping bodies that arrive slowly if need be. Raise Overloaded."""
        memory = self.memory
        while size > memory.free or (arriving and size > memory.free_for_arriving):
            if not body_deadlines().drop_slowest():
                raise Overloaded
        memory.free -= size
        self.size += size
        if arriving:
            memory.free_for_arriving -= size
            self.arriving += size

    def arrived(self) -> None:
        """Note that nothing more is awaited of the body."""
        self.memory.free_for_arriving += self.arriving
        self.arriving = 0

    def release(self) -> None:
        """Give all bytes back."""
        if self.size:
            self.arrived()
            self.memory.free += self.size
            self.size = 0


async def read_body(request: Request, headers: Headers, limit: int, reservation: Reservation) -> bytes:
    """Return the body, decompressed and without a byte order mark. `limit` holds for its size as sent and decompressed.

    Gzip is recognised by its first two bytes, too: no JSON begins with them. Raise RequestRefused, Overloaded.
    """
    gzipped = is_gzip(headers)
    declared = headers.get(b"content-length", b"")
    if len(declared) > LENGTH_DIGITS:
        raise RequestRefused(Fault("malformed_json", f"Content-Length has more than {LENGTH_DIGITS} digits"))
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    connection = short_path(request.scope)
    body = connection.take_buffered_body(request.scope) if connection else None
    if body is None:
        try:
            body = await body_deadlines().wait(_receive(request, limit, reservation), reservation.release)
            reservation.arrived()
        except TimeoutError:
            fault = Fault("malformed_json", "the body took too long to arrive")
            raise RequestRefused(fault, headers={"Connection": "close"}) from None
    elif len(body) > SMALL:
        reservation.add(len(body))
    if len(body) > limit:
        raise _too_large(limit)
    if gzipped or body.startswith(GZIP_MAGIC):
        body = await in_turns(gunzip_steps(body, limit))
        reservation.add(len(body))
    request.scope["body_is_read"] = True
    return body.removeprefix(BOM_UTF8)


async def _receive(request: Request, limit: int, reservation: Reservation) -> bytes:
    """Return the body as it is sent; of a body beyond `limit`, only the parts up to there."""
    body = bytearray()
    more = True
    while more and len(body) <= limit:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise RequestRefused(Fault("malformed_json", "the body ended too early"))  # seen only in the log
        part = message.get("body", b"")
        more = message.get("more_body", False)
        body += part
        if more or len(body) > SMALL:
            reservation.add(len(part), arriving=True)
        body_deadlines().extend(len(part))
    return bytes(body)


def gunzip(packed: bytes, limit: int) -> bytes:
    """Decompress all members of a gzip body (RFC 1952, section 2.2).

    Raise RequestRefused: payload_too_large beyond `limit` bytes, malformed_json for what is not gzip.
    """
    return at_once(gunzip_steps(packed, limit))


def gunzip_steps(packed: bytes, limit: int) -> Steps[bytes]:
    """Do as gunzip, in steps."""
    unpacked = bytearray()
    steps = 0
    rest = memoryview(packed)
    try:
        for _ in range(GZIP_MEMBERS):
            member = zlib.decompressobj(wbits=31)
            while rest and not member.eof:
                # In parts, because zlib copies all that follows a member when that ends.
                part = rest[:SMALL]
                unpacked += member.decompress(part, min(UNPACKED_PER_STEP, limit + 1 - len(unpacked)))
                if len(unpacked) > limit:
                    raise _too_large(limit)
                rest = rest[len(part) - len(member.unused_data) - len(member.unconsumed_tail) :]
                if len(unpacked) // UNPACKED_PER_STEP > steps:
                    steps += 1
                    yield
            if not member.eof:
                raise zlib.error("it ends too early")
            if not rest:
                return bytes(unpacked)
        raise zlib.error(f"it has more than {GZIP_MEMBERS} members")
    except zlib.error as error:
        raise RequestRefused(Fault("malformed_json", f"the body is not valid gzip: {error}")) from error


def check_structure(body: bytes, max_metrics: int, *, ndjson: bool = False) -> None:
    """Raise RequestRefused for a JSON text, or NDJSON, of far more values than `max_metrics` metrics can have."""
    if len(body) <= SMALL:
        return
    values = body.count(b",") + (body.count(b"\n") if ndjson else 0)
    nested = body.count(b"[") + body.count(b"{")
    if values <= VALUES_PER_METRIC * max_metrics + 1_000 and nested <= NESTED_PER_METRIC * max_metrics + 1_000:
        return
    if not ndjson:
        try:
            from_json(body[:SMALL], allow_partial=True)
        except ValueError as error:
            raise RequestRefused(Fault("malformed_json", f"Invalid JSON: {error}")) from error
    many = max_metrics > 1
    code, limit = ("too_many_metrics", f"{max_metrics} metrics") if many else ("payload_too_large", "one object")
    raise RequestRefused(Fault(code, f"the body has far more values than {limit} can have"))


def _too_large(limit: int) -> RequestRefused:
    return RequestRefused(Fault("payload_too_large", f"the body may have {limit} bytes at most"))
