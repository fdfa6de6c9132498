"""Browsers that post directly: which pages may read the answers (the Fetch standard, CORS protocol)."""

from collections.abc import Iterable

from starlette.responses import Response

Fields = list[tuple[bytes, bytes]]

PREFLIGHT: Fields = [
    (b"access-control-allow-methods", b"GET, HEAD, POST"),
    (
        b"access-control-allow-headers",
        b"authorization, content-encoding, content-type, idempotency-key, prefer, x-api-key",
    ),
    (b"access-control-max-age", b"7200"),
]
EXPOSED = (
    b"access-control-expose-headers",
    b"Metric-Id, Idempotent-Replayed, Preference-Applied, Retry-After, WWW-Authenticate",
)
VARY = (b"vary", b"Origin")


class Cors:
    """What CORS_ORIGINS allows.

    A listed origin may send credentials: navigator.sendBeacon always does, and no cookie means anything here. With `*`
    credentials stay forbidden: a page that nobody has named should not send what a gateway's cookie opens.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        self._fields: dict[bytes, Fields] = {
            origin.encode(): [
                VARY,
                (b"access-control-allow-origin", origin.encode()),
                (b"access-control-allow-credentials", b"true"),
                EXPOSED,
            ]
            for origin in origins
        }
        self._others: Fields = [VARY]
        if b"*" in self._fields:
            self._fields, self._others = {}, [(b"access-control-allow-origin", b"*"), EXPOSED]

    def fields(self, raw: Iterable[tuple[bytes, bytes]]) -> Fields:
        """The header fields to add to the answer of a request with the `raw` ones."""
        return self._fields.get(next((value for name, value in raw if name == b"origin"), b""), self._others)


def preflight() -> Response:
    """The answer to OPTIONS. Without Access-Control-Allow-Origin, which is added to every answer, it allows nothing."""
    response = Response(status_code=204)
    response.raw_headers = [(b"allow", b"GET, HEAD, OPTIONS, POST"), *PREFLIGHT]
    return response
