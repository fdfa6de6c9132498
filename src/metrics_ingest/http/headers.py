"""The header fields of a request: what its body is, Idempotency-Key, Prefer."""

import re
from collections.abc import Mapping, Sequence

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.http.functions import JSON, NDJSON, NDJSON_ALIASES
from metrics_ingest.model.validation import excerpt

Headers = Mapping[bytes, bytes]


def combined(raw: Sequence[tuple[bytes, bytes]]) -> Headers:
    """Return the header fields by lower-case name; a repeated one is one list (RFC 9110, section 5.3)."""
    headers = dict(raw)
    if len(headers) != len(raw):
        lists: dict[bytes, list[bytes]] = {}
        for name, value in raw:
            lists.setdefault(name, []).append(value)
        return {name: b", ".join(values) for name, values in lists.items()}
    return headers


def media_type(headers: Headers) -> bytes:
    """Return the Content-Type without its parameters, and NDJSON by one name. Absent or empty it is JSON."""
    sent = headers.get(b"content-type", JSON).partition(b";")[0].strip().lower() or JSON
    return NDJSON if sent in NDJSON_ALIASES else sent


def accepted_media_type(headers: Headers, accepted: Sequence[bytes]) -> bytes:
    """Return the body's media type. Raise RequestRefused (unsupported_media_type) if it is not one of `accepted`."""
    sent = headers.get(b"content-type", JSON)
    if sent not in accepted and (sent := media_type(headers)) not in accepted:
        wanted = " or ".join(name.decode() for name in accepted)
        raise RequestRefused(Fault("unsupported_media_type", f"send {wanted}, not {excerpt(sent.decode('latin-1'))}"))
    return sent


def is_gzip(headers: Headers) -> bool:
    """Return whether the body is gzip. Raise RequestRefused (unsupported_encoding) if it is neither gzip nor plain."""
    if b"content-encoding" not in headers:
        return False
    encoding = headers[b"content-encoding"].strip().lower()
    if encoding not in (b"identity", b"gzip", b"x-gzip"):
        detail = f"send the body as it is or as gzip, not as {excerpt(encoding.decode('latin-1'))}"
        raise RequestRefused(Fault("unsupported_encoding", detail), headers={"Accept-Encoding": "gzip, identity"})
    return encoding != b"identity"


def idempotency_key(headers: Headers) -> str | None:
    """Return the Idempotency-Key header, or None. Raise RequestRefused (invalid_field) if it breaks the rule below."""
    key = headers.get(b"idempotency-key")
    if key is None:
        return None
    if not re.fullmatch(rb"[!-~]{1,255}", key):
        raise RequestRefused(
            Fault("invalid_field", "Idempotency-Key must be 1 to 255 visible ASCII characters", "Idempotency-Key")
        )
    return key.decode()


def prefers_strict(headers: Headers) -> bool:
    """Return whether the client prefers handling=strict (RFC 7240, sections 2 and 4.4). The first of several counts."""
    for preference in headers.get(b"prefer", b"").lower().split(b","):
        name, _, value = preference.partition(b";")[0].partition(b"=")
        if name.strip() == b"handling":
            return value.strip().strip(b'"') == b"strict"
    return False
