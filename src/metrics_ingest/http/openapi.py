"""The HTTP contract as an OpenAPI 3.1 document: `python -m metrics_ingest.http.openapi > docs/openapi.json`."""

import json
import sys
from http import HTTPStatus
from typing import Any

from metrics_ingest import __version__
from metrics_ingest.errors import CODES
from metrics_ingest.http.functions import FUNCTIONS
from metrics_ingest.http.schemas import json_schemas

METRIC_EXAMPLE = {
    "user_id": "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d",
    "metric_type": "talked_time",
    "value": 12.34,
    "timestamp": "2024-08-08T12:34:56Z",
}
OTHER_ID = "6f1c2b7e-3a52-4c0e-9d3b-0a4f5b1c2d3e"
BATCH_EXAMPLE = [
    METRIC_EXAMPLE,
    METRIC_EXAMPLE | {"metric_type": "voice_sentiment", "value": 0.5, "metric_id": OTHER_ID},
]
REPORT_EXAMPLE = {
    "message": "2 of 4 metrics stored",
    "received": 4,
    "stored": 2,
    "duplicates": 1,
    "rejected": 1,
    "errors": [
        {
            "index": 3,
            "code": "value_out_of_range",
            "field": "value",
            "metric_id": OTHER_ID,
            "detail": "voice_sentiment must be between -1 and 1, got 3.5",
        }
    ],
}

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Metrics (or a user) without an id get one that is computed from this key and their position, so "
    "that the whole request can be sent again safely.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "RFC 7240. `handling=strict`: all or nothing. `handling=lenient` (default): all valid metrics.",
    "schema": {"type": "string"},
    "examples": {"strict": {"value": "handling=strict"}, "lenient": {"value": "handling=lenient"}},
}


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _header(name: str, description: str, schema: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    return {name: {"description": description, "schema": schema, **({"required": True} if required else {})}}


METRICS = {"type": "array", "items": _ref("schemas", "Metric"), "minItems": 1}
ENVELOPE = {
    "type": "object",
    "properties": {"metrics": METRICS},
    "required": ["metrics"],
    "additionalProperties": False,
}
NDJSON_TEXT = {"type": "string", "minLength": 1, "description": "one metric a line; blank lines are skipped"}

STORED_HEADERS = {
    **_header("Metric-Id", "the metric's id, sent or made", {"type": "string", "format": "uuid"}, required=True),
    **_header("Idempotent-Replayed", "if it was stored before; it is stored once", {"const": "true"}),
}
STRICT_HEADERS = _header("Preference-Applied", "if strict handling was asked for", {"const": "handling=strict"})
PROBLEM_HEADERS = {
    401: _header("WWW-Authenticate", "RFC 6750", {"const": "Bearer"}, required=True),
    415: _header("Accept-Encoding", "if the encoding was refused: what may be sent", {"const": "gzip, identity"}),
    503: _header("Retry-After", "seconds", {"type": "string", "pattern": "^[1-9][0-9]*$"}, required=True),
}


def _reply(description: str, schema: str, headers: dict[str, Any] | None = None, **content: Any) -> dict[str, Any]:
    """Return a JSON response. `content` adds to its media type object."""
    media = {"application/json": {"schema": _ref("schemas", schema), **content}}
    return {"description": description, **({"headers": headers} if headers else {}), "content": media}


def _problem(status: int) -> dict[str, Any]:
    """Return the problem+json response of a status, whose description lists its codes."""
    codes = ", ".join(code for code, known in CODES.items() if known == status)
    retry = " The same request can be sent again safely." if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
    headers = PROBLEM_HEADERS.get(status)
    return {
        "description": f"{codes}.{retry}",
        **({"headers": headers} if headers else {}),
        "content": {"application/problem+json": {"schema": _ref("schemas", "Problem")}},
    }


def _problems(*statuses: int) -> dict[str, Any]:
    return {str(status): _ref("responses", f"Problem{status}") for status in (*statuses, 500, 503)}


def _batch_refused() -> dict[str, Any]:
    """Return the response 422 of a batch: a report, or a problem where the body is no batch."""
    reply = _reply(
        "All are rejected, or one of a strict batch; or (a problem) the body is not a batch.",
        "BatchReport",
        STRICT_HEADERS,
    )
    reply["content"] |= _problem(422)["content"]
    return reply


# Of each function that takes POST: what the operation has of its own.
POSTS: dict[str, dict[str, Any]] = {
    "ingest": {
        "summary": "Store one metric",
        "description": "The reply is sent after the commit. A metric is identified by user_id, timestamp and metric_id "
        "and stored once.",
        "parameters": [IDEMPOTENCY_KEY],
        "content": {"application/json": {"schema": _ref("schemas", "Metric"), "example": METRIC_EXAMPLE}},
        "responses": {
            "200": _reply("It is stored.", "Stored", STORED_HEADERS),
            **_problems(400, 401, 409, 413, 415, 422),
        },
    },
    "ingest_batch": {
        "summary": "Store many metrics",
        "description": "1 to MAX_BATCH (10000) metrics, each accounted for by position: stored, a duplicate, or "
        "rejected with the reason.",
        "parameters": [IDEMPOTENCY_KEY, PREFER],
        "content": {
            "application/json": {
                "schema": {"anyOf": [METRICS, ENVELOPE]},
                "examples": {"array": {"value": BATCH_EXAMPLE}, "object": {"value": {"metrics": BATCH_EXAMPLE}}},
            },
            "application/x-ndjson": {
                "schema": NDJSON_TEXT,
                "example": "".join(json.dumps(metric, separators=(",", ":")) + "\n" for metric in BATCH_EXAMPLE),
            },
        },
        "responses": {
            "200": _reply("None is rejected.", "BatchReport", STRICT_HEADERS),
            "207": _reply("Some are stored or duplicates, some are rejected.", "BatchReport", example=REPORT_EXAMPLE),
            "422": _batch_refused(),
            **_problems(400, 401, 413, 415),
        },
    },
    "users": {
        "summary": "Register a user, or update its name and email",
        "description": "Metrics are accepted for registered users only.",
        "parameters": [IDEMPOTENCY_KEY],
        "content": {
            "application/json": {
                "schema": _ref("schemas", "User"),
                "example": {"user_id": METRIC_EXAMPLE["user_id"], "name": "Greg", "email": "greg@gmail.com"},
            }
        },
        "responses": {
            "200": _reply("It existed, and is updated.", "RegisteredUser"),
            "201": _reply("It is new.", "RegisteredUser"),
            **_problems(400, 401, 413, 415, 422),
        },
    },
}


def _post(name: str) -> dict[str, Any]:
    own = POSTS[name]
    return {
        "operationId": name,
        "tags": [name],
        "summary": own["summary"],
        "description": own["description"],
        "security": [{}, {"bearer": []}, {"api_key": []}],
        "parameters": own["parameters"],
        "requestBody": {
            "required": True,
            "description": "Plain, or with `Content-Encoding: gzip`; at most MAX_BODY_BYTES, sent and decompressed.",
            "content": own["content"],
        },
        "responses": own["responses"],
    }


def _get(name: str, kind: str, summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {
        "tags": [name],
        "security": [],
        "operationId": f"{name}_{kind}",
        "summary": summary,
        "responses": responses,
    }


def _paths() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for function in FUNCTIONS:
        name = function.name
        up, healthy = _reply("It is.", "Liveness"), _reply("It does.", "Health")
        live = _get(name, "liveness", "Is the function up? Does not ask the database.", {"200": up})
        health = _get(name, "health", "Does its database answer?", {"200": healthy, **_problems()})
        paths |= {f"/{name}/": {"get": live}, f"/{name}/health": {"get": health}}
        if "POST" in function.methods:
            paths[f"/{name}/"]["post"] = _post(name)
    return paths


def document() -> dict[str, Any]:
    """Return the OpenAPI document as Python's own types."""
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "metrics-ingest",
            "version": __version__,
            "description": "User metrics into a PostgreSQL that you own. A 2xx means committed; a 503 may be retried.",
        },
        "servers": [{"url": "/", "description": "all functions at one address; a single function answers on any path"}],
        "paths": _paths(),
        "components": {
            "schemas": json_schemas(),
            "responses": {f"Problem{status.value}": _problem(status) for status in sorted(set(CODES.values()))},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def to_text() -> str:
    """Return the document as it is stored in docs/openapi.json."""
    return json.dumps(document(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(to_text())
