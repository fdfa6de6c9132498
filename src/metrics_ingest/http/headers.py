"""The header fields of a request that a function reads: media type, Idempotency-Key, Prefer."""

import re
from collections.abc import Mapping, Sequence

from metrics_ingest.errors import Fault, RequestRefused

JSON = b"application/json"
NDJSON = b"application/x-ndjson"

Headers = Mapping[bytes, bytes]


def combined(raw: Sequence[tuple[bytes, bytes]]) -> Headers:
    """The header fields by lower-case name; a repeated one is one list (RFC 9110, section 5.3)."""
    headers = dict(raw)
    if len(headers) != len(raw):
        lists: dict[bytes, list[bytes]] = {}
        for name, value in raw:
            lists.setdefault(name, []).append(value)
        return {name: b", ".join(values) for name, values in lists.items()}
    return headers


def media_type(headers: Headers) -> bytes:
    """The Content-Type without its parameters; what has none is JSON."""
    return headers.get(b"content-type", JSON).partition(b";")[0].strip().lower()


def idempotency_key(headers: Headers) -> str | None:
    """The Idempotency-Key header, if sent: 1 to 255 visible ASCII characters."""
    key = headers.get(b"idempotency-key")
    if key is None:
        return None
    if not re.fullmatch(rb"[!-~]{1,255}", key):
        raise RequestRefused(
            Fault("invalid_field", "Idempotency-Key must be 1 to 255 visible ASCII characters", "Idempotency-Key")
        )
    return key.decode()


def prefers_strict(headers: Headers) -> bool:
    """Whether the sender prefers handling=strict (RFC 7240, sections 2 and 4.4). Of several wishes the first counts."""
    for preference in headers.get(b"prefer", b"").lower().split(b","):
        name, _, value = preference.partition(b";")[0].partition(b"=")
        if name.strip() == b"handling":
            return value.strip().strip(b'"') == b"strict"
    return False
