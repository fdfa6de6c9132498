"""Hooks for schemathesis: how NDJSON is written, and a registered user for half of the valid metrics."""

import json
from typing import Any

import schemathesis

KNOWN = {"user_id": "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d", "timestamp": "2024-08-08T12:34:56Z"}
TYPES = ("talked_time", "microphone_used", "speaker_used", "voice_sentiment")


@schemathesis.serializer("application/x-ndjson")
def as_lines(_context: Any, body: Any) -> bytes:
    """Encode a text as it is, and anything else as JSON: the document asks for a text."""
    return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else json.dumps(body, default=str).encode()


@schemathesis.serializer("application/x-protobuf")
def as_protobuf(_context: Any, body: Any) -> bytes:
    """Encode a text as it is: hardly ever a message, and so mostly refused."""
    return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else json.dumps(body, default=str).encode()


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Give half of the valid metrics a registered user and type."""
    if not isinstance(case.body, dict | list | str) or not case.meta or case.meta.generation.mode.is_negative:
        return
    if case.media_type == "application/x-ndjson":
        case.body = f"{json.dumps(KNOWN | {'metric_type': TYPES[0], 'value': 1})}\n{case.body}"
        return
    if case.media_type == "application/x-protobuf":
        return
    found = case.body.get("metrics", [case.body]) if isinstance(case.body, dict) else case.body
    for metric in found:
        if isinstance(metric, dict) and "value" in metric and len(str(metric["value"])) % 2:
            metric |= KNOWN | {"metric_type": TYPES[len(str(metric["value"])) % 4]}
