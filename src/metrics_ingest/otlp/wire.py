"""Limits the number of fields in a protobuf body before it is decoded.

A message of two bytes takes up to 70 bytes in memory (measured: 10 MB of empty ResourceMetrics became 330 MB in
0.6 s), so the number of fields is limited to what the records of a valid body can have.
"""

from functools import cache
from typing import Any

from metrics_ingest.errors import Fault, RequestRefused

SMALL = 524_288  # bytes; a body up to this size is not checked, because it cannot grow to more than 20 MB
FIELDS_PER_RECORD = 64  # a point with fifteen attributes, each of which has four
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def check_fields(body: bytes, descriptor: Any, max_records: int) -> None:
    """Raise RequestRefused for a large body that has far more fields than `max_records` records can have.

    Return for a body that is not a valid message: decoding it finds that out.
    """
    if len(body) <= SMALL:
        return
    left = FIELDS_PER_RECORD * max_records + 1_000
    stack = [(0, len(body), _messages_in(descriptor))]
    while stack:
        at, end, messages = stack.pop()
        while at < end:
            left -= 1
            if not left:
                detail = f"the body has far more fields than {max_records} records can have"
                raise RequestRefused(Fault("too_many_metrics", detail))
            tag, at = _varint(body, at)
            wire_type = tag & 7
            if wire_type == BYTES:
                size, at = _varint(body, at)
                inner = messages.get(tag >> 3)
                if inner is not None and size:
                    stack.append((at, min(at + size, end), _messages_in(inner)))
                at += size
            elif wire_type == VARINT:
                _, at = _varint(body, at)
            elif wire_type in (FIXED64, FIXED32):
                at += 8 if wire_type == FIXED64 else 4
            else:
                return


@cache
def _messages_in(descriptor: Any) -> dict[int, Any]:
    """Return the fields of a message that are messages themselves, by number."""
    return {field.number: field.message_type for field in descriptor.fields if field.message_type}


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """Return the number at that place, and the place after it; beyond the end all bytes are 0."""
    number = shift = 0
    while at < len(body) and shift < 70:
        byte = body[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    return 0, len(body)
