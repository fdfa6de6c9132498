"""The shape of an error reply."""

from typing import Any

import requests

from metrics_ingest.errors import CODES


def check_problem(answer: requests.Response, code: str, field: str | None = None) -> dict[str, Any]:
    """The answer is an RFC 9457 problem of this code; return it."""
    problem: dict[str, Any] = answer.json()
    assert (problem["code"], answer.status_code) == (code, CODES[code]), problem
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert set(problem) == {"type", "title", "status", "detail", "code", "errors"}
    assert problem["type"] == f"urn:metrics-ingest:problem:{code}"
    assert problem["status"] == answer.status_code
    assert problem["title"]
    first = problem["errors"][0]
    assert set(first) == {"code", "field", "metric_id", "detail"}
    assert (first["code"], first["field"], first["detail"]) == (code, field, problem["detail"])
    assert not any(word in answer.text for word in ("Traceback", "pg8000", "SELECT", "pydantic"))
    return problem
