"""CORS: which web pages may send requests and read the replies (the Fetch standard, "CORS protocol")."""

import re
from collections.abc import Iterable, Mapping

from starlette.responses import Response

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.model.validation import excerpt

Fields = list[tuple[bytes, bytes]]

PREFLIGHT = {
    "Allow": "GET, HEAD, OPTIONS, POST",
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Allow-Headers": "authorization, content-encoding, content-type, idempotency-key, prefer, x-api-key,"
    " baggage, sentry-trace, traceparent, tracestate, x-cloud-trace-context",  # tracing adds these to every fetch
    "Access-Control-Max-Age": "7200",
}
CREDENTIALS = (b"access-control-allow-credentials", b"true")
EXPOSED = (
    b"access-control-expose-headers",
    b"Date, Idempotent-Replayed, Metric-Id, Preference-Applied, Retry-After, WWW-Authenticate",
)
VARY = (b"vary", b"Origin")


class Cors:
    """The header fields that CORS_ORIGINS adds to replies.

    `*.` before a host stands for any subdomain, `:*` behind it for any port and none. A listed origin may send
    credentials, because navigator.sendBeacon always does; cookies have no effect here. `*` does not allow credentials,
    because a gateway's cookie should not work from a page that nobody has listed.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        escaped = map(re.escape, origins)
        patterns = [o.replace(r"//\*\.", r"//(?:[a-z0-9-]+\.)+").replace(r":\*", r"(?::[0-9]{1,5})?") for o in escaped]
        self._all = r"\*" in patterns
        self._listed = re.compile("|".join(patterns).encode())

    def allows(self, origin: bytes) -> bool:
        """Return whether pages of the origin may send requests and read the replies."""
        return self._all or bool(self._listed.fullmatch(origin))

    def fields(self, raw: Iterable[tuple[bytes, bytes]]) -> Fields:
        """Return the header fields to add to the reply to a request with the `raw` fields."""
        if self._all:
            return [(b"access-control-allow-origin", b"*"), EXPOSED]
        origin = next((value for name, value in raw if name == b"origin"), b"")
        if not self.allows(origin):
            return [VARY]
        return [VARY, (b"access-control-allow-origin", origin), CREDENTIALS, EXPOSED]


def check_origin(headers: Mapping[bytes, bytes], cors: Cors | None) -> None:
    """Raise RequestRefused (forbidden_origin) for a request of a page that is neither the server's own nor listed.

    This is for functions without keys. There any page that a user visits could write to a function that only the user
    can reach, because a browser asks for permission (CORS) only before some requests, and before no simple one.
    """
    origin = headers.get(b"origin", b"").lower()
    if not origin or (cors and cors.allows(origin)):
        return
    scheme, _, authority = origin.partition(b"://")
    # Not the scheme, because TLS may end before the function does.
    default_port = b":443" if scheme == b"https" else b":80"
    host = headers.get(b"host", b"").lower().removesuffix(default_port)
    if authority.removesuffix(default_port) != host or not host:
        sent = excerpt(origin.decode("latin-1"))
        raise RequestRefused(Fault("forbidden_origin", f"pages of {sent} may not send requests; see CORS_ORIGINS"))


def preflight() -> Response:
    """Return the reply to OPTIONS. It allows nothing without Access-Control-Allow-Origin, which `Cors.fields` adds."""
    return Response(status_code=204, headers=PREFLIGHT)
