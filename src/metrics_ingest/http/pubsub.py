"""Pub/Sub push: a batch that comes as a message, and is acknowledged once each of its metrics is accounted for.

https://cloud.google.com/pubsub/docs/push: the message is delivered again until the reply is 2xx, for up to 31 days. So
what can never be stored is acknowledged too, and kept in quarantine; only what may be stored later gets an error.
"""

import base64
import binascii
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from metrics_ingest import logs
from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.http.auth import authenticate
from metrics_ingest.http.bodies import Memory, Reservation, check_structure, gunzip, read_body
from metrics_ingest.http.functions import JSON, NDJSON, NDJSON_ALIASES
from metrics_ingest.http.headers import Headers, accepted_media_type
from metrics_ingest.http.replies import Reply
from metrics_ingest.http.service import Service
from metrics_ingest.model.validation import parse_json
from metrics_ingest.storage.quarantine import Rejected, keep

ENVELOPE_BYTES = 65_536  # beside the data: attributes, names and ids
GZIP = b"\x1f\x8b"
KEY = rb"[!-~]{1,255}"  # as of Idempotency-Key

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Push:
    """A pushed message: its decompressed data, whether that is NDJSON, and the Idempotency-Key that its id is."""

    data: bytes
    ndjson: bool
    key: str


def is_push(path: str) -> bool:
    """Return whether a path ends with that of pushes."""
    return path.rstrip("/").endswith("/pubsub")


def unpack(body: bytes, max_bytes: int, max_metrics: int) -> Push:
    """Read the envelope of a message. Raise RequestRefused."""
    check_structure(body, max_metrics=1)
    envelope = parse_json(body)
    message = envelope.get("message") if isinstance(envelope, dict) else None
    if not isinstance(message, dict):
        raise RequestRefused(Fault("missing_field", 'send {"message": {"data": "…", "messageId": "…"}}', "message"))
    key = message.get("messageId")
    if not isinstance(key, str) or not re.fullmatch(KEY, key.encode()):
        raise RequestRefused(Fault("missing_field", "messageId must be 1 to 255 visible ASCII characters", "messageId"))
    data = _data(message.get("data", ""), max_bytes)
    attributes = message.get("attributes")
    declared = attributes.get("content-type") if isinstance(attributes, dict) else None
    sent = str(declared or "").partition(";")[0].strip().lower().encode()
    ndjson = sent in (NDJSON, *NDJSON_ALIASES)
    check_structure(data, max_metrics, ndjson=sent != JSON)
    if not ndjson and sent != JSON:
        data, ndjson = _form(data)
    return Push(data, ndjson, key)


def _data(text: Any, max_bytes: int) -> bytes:
    """Return the data, decoded and decompressed. Raise RequestRefused."""
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise RequestRefused(Fault("invalid_field", "data must be base64", "data")) from error
    if data.startswith(GZIP):
        return gunzip(data, max_bytes)
    if len(data) > max_bytes:
        raise RequestRefused(Fault("payload_too_large", f"the data may have {max_bytes} bytes at most"))
    return data


def _form(data: bytes) -> tuple[bytes, bool]:
    """Return data of an undeclared form as a batch, and whether it is NDJSON. One metric becomes a batch of one."""
    try:
        document = from_json(data)
    except ValueError:
        return data, data.lstrip(b" \t\r\n").startswith(b"{")
    if isinstance(document, dict) and "metrics" not in document:
        return b"[" + data + b"]", False
    return data, False


class PubsubService(Service):
    """A service for pushed messages. It replies 204 when a message is accounted for, also when it is refused."""

    def __init__(self, name: str, store: Callable[[Push], Awaitable[Rejected]], memory: Memory) -> None:
        """`store` stores the valid metrics and returns the others. `memory` is that of the function's other service."""
        super().__init__(name, _no_handler, memory=memory)
        self._store = store

    async def _work(self, request: Request, headers: Headers) -> Response:
        caller = request.scope["caller"] = authenticate(headers, self.settings.api_keys)
        accepted_media_type(headers, (JSON,))
        limit = self.settings.max_body_bytes
        reservation = Reservation(self.memory)
        rejected = Rejected({}, [])
        body = data = b""
        try:
            # Base64 is a third longer than the data.
            body = data = await read_body(request, headers, limit * 4 // 3 + ENVELOPE_BYTES, reservation)
            push = unpack(body, limit, self.settings.max_batch)
            reservation.add(len(push.data))
            data = push.data
            rejected = await self._store(push)
        except RequestRefused as error:
            if not body and error.code != "payload_too_large":  # the message did not arrive as a whole
                raise
            rejected = Rejected({0: error.faults}, [data])
        finally:
            reservation.release()
        if rejected.faults:
            self.count_rejected(rejected)
            facts = {"function": self.function.name, "refused": len(rejected.faults), "key": caller}
            facts |= logs.trace(request.scope["headers"])
            logger.info("rejected metrics of a message are acknowledged", extra={"facts": facts})
            await keep(self.function.name, caller, rejected, keyed=True)
        acknowledgement = Reply(204, b"")
        acknowledgement.raw_headers = []
        return acknowledgement


async def _no_handler(_body: bytes, _headers: Headers) -> Reply:
    raise NotImplementedError
