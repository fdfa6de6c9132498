"""The contract as an OpenAPI 3.1 document: `python -m metrics_ingest.http.openapi > docs/openapi.json`.

What is sent is described by the models that read it, what is answered by the types below; the tests hold every answer
against the document.
"""

import json
import sys
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from metrics_ingest import __version__
from metrics_ingest.errors import CODES
from metrics_ingest.model.metric import METRIC
from metrics_ingest.model.user import USER

CLOSED = ConfigDict(extra="forbid")
Count = Annotated[int, Field(ge=0)]
Code = Annotated[str, Field(json_schema_extra={"enum": list(CODES)})]


class Stored(TypedDict):
    """The metric is committed."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]  # pydantic's way for a TypedDict
    message: Literal["Metric stored successfully!"]


class Error(TypedDict):
    """One thing that is wrong."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    code: Code
    field: str | None
    metric_id: UUID | None
    detail: str


class BatchError(TypedDict):
    """One thing that is wrong with the metric at `index`."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    index: Annotated[
        Count, Field(description="the metric's position, from 0; in NDJSON, of the lines that are not blank")
    ]
    code: Code
    field: str | None
    metric_id: UUID | None
    detail: str


class BatchReport(TypedDict):
    """received = stored + duplicates + rejected, but for a strict batch that was refused: there nothing was stored."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    message: str
    received: Annotated[int, Field(ge=1)]
    stored: Count
    duplicates: Annotated[Count, Field(description="stored before, or earlier in the batch, with the same content")]
    rejected: Count
    errors: Annotated[list[BatchError], Field(description="ascending by index; a metric may have several")]


class Problem(TypedDict):
    """RFC 9457. `code` and `detail` are those of the first error."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    type: Annotated[str, Field(pattern="^urn:metrics-ingest:problem:[a-z_]+$")]
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    code: Code
    errors: Annotated[list[Error], Field(min_length=1)]


class RegisteredUser(TypedDict):
    """A user as it is stored now."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    user_id: UUID
    name: str
    email: str | None
    created_at: datetime


class Liveness(TypedDict):
    """The function runs."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    function: Literal["ingest", "ingest_batch", "users"]
    version: str
    status: Literal["ok"]


class Health(TypedDict):
    """The database answers."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    function: Literal["ingest", "ingest_batch", "users"]
    version: str
    database: Literal["ok"]


EXAMPLE = {
    "user_id": "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d",
    "metric_type": "talked_time",
    "value": 12.34,
    "timestamp": "2024-08-08T12:34:56Z",
}
OTHER = EXAMPLE | {"metric_type": "voice_sentiment", "value": 0.5, "metric_id": "6f1c2b7e-3a52-4c0e-9d3b-0a4f5b1c2d3e"}
EXAMPLE_USER = {"user_id": EXAMPLE["user_id"], "name": "Greg", "email": "greg@gmail.com"}

KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Gives what has no id one that is computed from this key and its position, so that the whole "
    "request can be sent again safely.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "RFC 7240. `handling=strict`: all or nothing. `handling=lenient` (default): what is right stays.",
    "schema": {"type": "string"},
    "examples": {"strict": {"value": "handling=strict"}, "lenient": {"value": "handling=lenient"}},
}


def _header(description: str, schema: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    return {"description": description, "schema": schema, **({"required": True} if required else {})}


PREFERENCE_APPLIED = {
    "Preference-Applied": _header("where strict handling was asked for", {"const": "handling=strict"})
}
RETRY_AFTER = {"Retry-After": _header("seconds", {"type": "string", "pattern": "^[1-9][0-9]*$"}, required=True)}
PROBLEM_HEADERS = {
    401: {"WWW-Authenticate": _header("RFC 6750", {"const": "Bearer"}, required=True)},
    415: {"Accept-Encoding": _header("what may be sent, where the encoding was refused", {"const": "gzip, identity"})},
    503: RETRY_AFTER,
}


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _answer(description: str, schema: str, headers: dict[str, Any] | None = None, **example: Any) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref("schemas", schema), **example}}
    return {"description": description, **({"headers": headers} if headers else {}), "content": content}


def _problem(status: int) -> dict[str, Any]:
    codes = [code for code, known in CODES.items() if known == status]
    again = " Nothing is lost by sending the same request again." if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
    headers = PROBLEM_HEADERS.get(status)
    return {
        "description": f"{', '.join(codes)}.{again}",
        **({"headers": headers} if headers else {}),
        "content": {"application/problem+json": {"schema": _ref("schemas", "Problem")}},
    }


def _problems(*statuses: int) -> dict[str, Any]:
    return {str(status): _ref("responses", f"Problem{status}") for status in (*statuses, 500, 503)}


def _post(
    name: str, summary: str, description: str, content: dict[str, Any], responses: dict[str, Any]
) -> dict[str, Any]:
    return {
        "operationId": name,
        "tags": [name],
        "summary": summary,
        "description": description,
        "security": [{}, {"bearer": []}, {"api_key": []}],
        "parameters": [KEY, PREFER] if name == "ingest_batch" else [KEY],
        "requestBody": {
            "required": True,
            "description": "As it is, or with `Content-Encoding: gzip`; MAX_BODY_BYTES at most, packed and unpacked.",
            "content": content,
        },
        "responses": responses,
    }


def _get(name: str) -> dict[str, Any]:
    operation = {"tags": [name], "security": []}
    return {
        f"/{name}/": operation
        | {
            "operationId": f"{name}_liveness",
            "summary": "Is the function there? Asks no database.",
            "responses": {"200": _answer("It is.", "Liveness")},
        },
        f"/{name}/health": operation
        | {
            "operationId": f"{name}_health",
            "summary": "Does its database answer?",
            "responses": {"200": _answer("It does.", "Health"), **_problems()},
        },
    }


def _batch_answers() -> dict[str, Any]:
    counts = {"received": 4, "stored": 2, "duplicates": 1, "rejected": 1}
    error = {
        "index": 3,
        "code": "value_out_of_range",
        "field": "value",
        "metric_id": OTHER["metric_id"],
        "detail": "voice_sentiment must be between -1 and 1, got 3.5",
    }
    example = {"message": "2 of 4 metrics stored", **counts, "errors": [error]}
    refused = _answer("All are rejected, or one of a strict batch; or (a problem) the body is no batch.", "BatchReport")
    refused["content"] |= _problem(422)["content"]
    return {
        "200": _answer("None is rejected.", "BatchReport", PREFERENCE_APPLIED),
        "207": _answer("Some are stored or duplicates, some are rejected.", "BatchReport", example=example),
        "422": refused | {"headers": PREFERENCE_APPLIED},
    }


def _posts() -> dict[str, Any]:
    metrics = {"type": "array", "items": _ref("schemas", "Metric"), "minItems": 1}
    envelope = {
        "type": "object",
        "properties": {"metrics": metrics},
        "required": ["metrics"],
        "additionalProperties": False,
    }
    lines = "".join(json.dumps(metric, separators=(",", ":")) + "\n" for metric in (EXAMPLE, OTHER))
    stored = {
        "Metric-Id": _header("the metric's id, sent or given", {"type": "string", "format": "uuid"}, required=True),
        "Idempotent-Replayed": _header("where it was stored before; it is stored once", {"const": "true"}),
    }
    return {
        "/ingest/": _post(
            "ingest",
            "Store one metric",
            "Answered after the commit. A metric is identified by user_id, timestamp and metric_id, and stored once.",
            {"application/json": {"schema": _ref("schemas", "Metric"), "example": EXAMPLE}},
            {"200": _answer("It is stored.", "Stored", stored), **_problems(400, 401, 409, 413, 415, 422)},
        ),
        "/ingest_batch/": _post(
            "ingest_batch",
            "Store many metrics",
            "1 to MAX_BATCH (10000) metrics, each accounted for by position: stored, a duplicate, or rejected and why.",
            {
                "application/json": {
                    "schema": {"anyOf": [metrics, envelope]},
                    "examples": {
                        "array": {"value": [EXAMPLE, OTHER]},
                        "object": {"value": {"metrics": [EXAMPLE, OTHER]}},
                    },
                },
                "application/x-ndjson": {
                    "schema": {
                        "type": "string",
                        "minLength": 1,
                        "description": "one metric a line, blank ones skipped",
                    },
                    "example": lines,
                },
            },
            {**_batch_answers(), **_problems(400, 401, 413, 415)},
        ),
        "/users/": _post(
            "users",
            "Register a user, or update its name and email",
            "Metrics are taken of registered users only.",
            {"application/json": {"schema": _ref("schemas", "User"), "example": EXAMPLE_USER}},
            {
                "200": _answer("It existed, and is updated.", "RegisteredUser"),
                "201": _answer("It is new.", "RegisteredUser"),
                **_problems(400, 401, 413, 415, 422),
            },
        ),
    }


def _schemas() -> dict[str, Any]:
    answers = (Stored, BatchReport, Problem, RegisteredUser, Liveness, Health)
    adapters: list[TypeAdapter[Any]] = [METRIC, USER, *(TypeAdapter(answer) for answer in answers)]
    _, defined = TypeAdapter.json_schemas(
        [(number, "validation", adapter) for number, adapter in enumerate(adapters)],
        ref_template="#/components/schemas/{model}",
    )
    return dict(sorted(defined["$defs"].items()))


def document() -> dict[str, Any]:
    """The OpenAPI document, as JSON's own types."""
    paths: dict[str, dict[str, Any]] = {}
    for path, operation in _posts().items():
        for get_path, get in _get(path.strip("/")).items():
            paths[get_path] = {"get": get}
        paths[path]["post"] = operation
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "metrics-ingest",
            "version": __version__,
            "description": "User metrics into a PostgreSQL that you own. A 2xx means committed; a 503 may be retried.",
        },
        "servers": [{"url": "/", "description": "all functions at one address; a single function answers on any path"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "responses": {f"Problem{status.value}": _problem(status) for status in sorted(set(CODES.values()))},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def to_text() -> str:
    """The document as it is kept in docs/openapi.json."""
    return json.dumps(document(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(to_text())
