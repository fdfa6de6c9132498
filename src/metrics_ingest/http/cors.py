"""CORS: which web pages may send requests and read the replies (the Fetch standard, "CORS protocol")."""

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
    """The header fields that CORS_ORIGINS adds to replies.

    A listed origin may send credentials, because navigator.sendBeacon always does; cookies have no effect here. `*`
    does not allow credentials, because a gateway's cookie should not work from a page that nobody has listed.
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
        """Return the header fields to add to the reply to a request with the `raw` fields."""
        return self._fields.get(next((value for name, value in raw if name == b"origin"), b""), self._others)


def preflight() -> Response:
    """Return the reply to OPTIONS. It allows nothing without Access-Control-Allow-Origin, which `Cors.fields` adds."""
    response = Response(status_code=204)
    response.raw_headers = [(b"allow", b"GET, HEAD, OPTIONS, POST"), *PREFLIGHT]
    return response
