"""CORS: which web pages may send requests and read the replies (the Fetch standard, "CORS protocol")."""

import re
from collections.abc import Iterable

from starlette.responses import Response

Fields = list[tuple[bytes, bytes]]

PREFLIGHT: Fields = [
    (b"access-control-allow-methods", b"GET, HEAD, POST"),
    (
        b"access-control-allow-headers",
        b"authorization, content-encoding, content-type, idempotency-key, prefer, x-api-key, "
        b"baggage, sentry-trace, traceparent, tracestate, x-cloud-trace-context",  # tracing adds them to every fetch
    ),
    (b"access-control-max-age", b"7200"),
]
EXPOSED = (
    b"access-control-expose-headers",
    b"Date, Idempotent-Replayed, Metric-Id, Preference-Applied, Retry-After, WWW-Authenticate",
)
VARY = (b"vary", b"Origin")


class Cors:
    """The header fields that CORS_ORIGINS adds to replies.

    A listed origin may send credentials, because navigator.sendBeacon always does; cookies have no effect here. `*`
    does not allow credentials, because a gateway's cookie should not work from a page that nobody has listed.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        self._fields = {origin.encode(): _allow(origin.encode()) for origin in origins if "*" not in origin}
        self._patterns = [_pattern(origin) for origin in origins if "*" in origin]
        self._others: Fields = [VARY]
        if "*" in origins:
            self._fields, self._patterns = {}, []
            self._others = [(b"access-control-allow-origin", b"*"), EXPOSED]

    def fields(self, raw: Iterable[tuple[bytes, bytes]]) -> Fields:
        """Return the header fields to add to the reply to a request with the `raw` fields."""
        origin = next((value for name, value in raw if name == b"origin"), b"")
        if found := self._fields.get(origin):
            return found
        return _allow(origin) if any(pattern.fullmatch(origin) for pattern in self._patterns) else self._others


def _allow(origin: bytes) -> Fields:
    return [
        VARY,
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
        EXPOSED,
    ]


def _pattern(origin: str) -> re.Pattern[bytes]:
    """Compile an origin with `*.` before its host, for any subdomain, or `:*` behind it, for any port and none."""
    pattern = re.escape(origin)
    pattern = pattern.replace(r"//\*\.", r"//(?:[a-z0-9-]+\.)+").replace(r":\*", r"(?::[0-9]{1,5})?")
    return re.compile(pattern.encode())


def preflight() -> Response:
    """Return the reply to OPTIONS. It allows nothing without Access-Control-Allow-Origin, which `Cors.fields` adds."""
    response = Response(status_code=204)
    response.raw_headers = [(b"allow", b"GET, HEAD, OPTIONS, POST"), *PREFLIGHT]
    return response
