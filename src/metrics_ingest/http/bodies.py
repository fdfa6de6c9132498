"""What a body may cost before it is known to be worth anything.

A parser makes up to 150 bytes of objects out of one byte of JSON (measured: 10 MB of `[],[],…` became 500 MB, a million
keys 1.6 GB), so the number of values is held to what the metrics of a valid body can have before anything parses it.
"""

import zlib

from pydantic_core import from_json

from metrics_ingest.errors import Fault, RequestRefused

SMALL = 65_536  # a body of this size can do no harm, whatever it holds; the checks below are for larger ones
MEMBERS = 4_096  # of one gzip body; each costs a decompressor
VALUES_PER_METRIC = 16  # a metric has 6; a batch of metrics with unknown fields is still told about each of them
NESTED_PER_METRIC = 4


def check_structure(body: bytes, most: int, *, lines: bool = False) -> None:
    """Refuse a JSON text (or one on each of its `lines`) of far more values than `most` metrics can have.

    Raise RequestRefused.
    """
    if len(body) <= SMALL:
        return
    values = body.count(b",") + (body.count(b"\n") if lines else 0)
    nested = body.count(b"[") + body.count(b"{")
    if values <= VALUES_PER_METRIC * most + 1_000 and nested <= NESTED_PER_METRIC * most + 1_000:
        return
    if not lines:
        try:
            from_json(body[:SMALL], allow_partial=True)
        except ValueError as error:
            raise RequestRefused(Fault("malformed_json", f"Invalid JSON: {error}")) from error
    code, metrics = ("too_many_metrics", f"{most} metrics") if most > 1 else ("payload_too_large", "one object")
    raise RequestRefused(Fault(code, f"the body has far more values than {metrics} can have"))


def gunzip(packed: bytes | bytearray, limit: int, too_large: RequestRefused) -> bytes:
    """Unpack all members of a gzip body (RFC 1952, section 2.2). Raise `too_large` beyond `limit` bytes."""
    unpacked = bytearray()
    rest = memoryview(packed)
    try:
        for _ in range(MEMBERS):
            member = zlib.decompressobj(wbits=31)
            while rest and not member.eof:
                # In pieces: what follows a member is copied each time one ends.
                piece = rest[:SMALL]
                unpacked += member.decompress(piece, limit + 1 - len(unpacked))
                if len(unpacked) > limit:
                    raise too_large
                rest = rest[len(piece) - len(member.unused_data) :]
            if not member.eof:
                raise zlib.error("it ends too early")
            if not rest:
                return bytes(unpacked)
        raise zlib.error(f"it has more than {MEMBERS} members")
    except zlib.error as error:
        raise RequestRefused(Fault("malformed_json", f"the body is not gzip as announced: {error}")) from error
