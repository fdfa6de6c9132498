"""API keys: who may call a function."""

import hashlib
import hmac
from collections.abc import Iterable

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.http.headers import Headers
from metrics_ingest.settings import ApiKey


def authenticate(headers: Headers, keys: Iterable[ApiKey]) -> str | None:
    """Return the name of the caller's key, or None where no keys are set. Raise RequestRefused (unauthorized).

    X-API-Key has priority, because Authorization may hold the token of a check before this one, as Cloud Run's.
    """
    if not keys:
        return None
    sent = headers.get(b"x-api-key", b"")
    if not sent:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        sent = token.strip() if scheme.lower() == b"bearer" else b""
    digest = hashlib.sha256(sent).digest()
    # All keys are compared, each in constant time: the time tells nothing about the keys.
    names = [key.name for key in keys if hmac.compare_digest(key.digest, digest)]
    if not names or not sent:
        raise RequestRefused(
            Fault("unauthorized", "send a known key as Authorization: Bearer or as X-API-Key"),
            headers={"WWW-Authenticate": "Bearer"},
        )
    return names[0]
