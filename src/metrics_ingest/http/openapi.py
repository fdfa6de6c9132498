"""The HTTP contract as an OpenAPI 3.1 document: `python -m metrics_ingest.http.openapi > docs/openapi.json`.

openapi_base.json has what is written by hand: summaries, examples, and the replies of each POST. The rest is made
from the code: schemas from the types, problems from the error codes, liveness and health from the list of functions.
"""

import json
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any

from metrics_ingest import __version__
from metrics_ingest.errors import CODES
from metrics_ingest.http.functions import FUNCTIONS
from metrics_ingest.http.schemas import json_schemas

BASE = Path(__file__).with_name("openapi_base.json")


def _content(media_type: str, schema: str) -> dict[str, Any]:
    return {"content": {media_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


def _problem(status: HTTPStatus) -> dict[str, Any]:
    """Return the response for a status, whose description lists its codes."""
    codes = ", ".join(code for code, known in CODES.items() if known == status)
    retry = " The same request can be sent again safely." if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
    return {"description": f"{codes}.{retry}", **_content("application/problem+json", "Problem")}


def _status_paths(name: str) -> dict[str, Any]:
    """Return the paths of a function's liveness and health."""
    problems = {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in (500, 503)}
    live: dict[str, Any] = {
        "tags": [name],
        "security": [],
        "operationId": f"{name}_liveness",
        "summary": "Is the function up? Does not ask the database.",
        "responses": {"200": {"description": "It is.", **_content("application/json", "Liveness")}},
    }
    health = live | {
        "operationId": f"{name}_health",
        "summary": "Does its database answer?",
        "responses": {"200": {"description": "It does.", **_content("application/json", "Health")}, **problems},
    }
    return {f"/{name}/": {"get": live}, f"/{name}/health": {"get": health}}


def document() -> dict[str, Any]:
    """Return the OpenAPI document as Python's own types."""
    result: dict[str, Any] = json.loads(BASE.read_text())
    result["info"]["version"] = __version__
    components = result["components"]
    components["schemas"] = json_schemas()
    components["responses"] |= {
        name: _problem(status) | components["responses"].get(name, {})
        for status in sorted(set(CODES.values()))
        for name in [f"Problem{status.value}"]
    }
    paths: dict[str, Any] = {}
    for function in FUNCTIONS:
        paths |= _status_paths(function.name)
    for path, operations in result["paths"].items():
        paths[path] = paths.get(path, {}) | operations
    result["paths"] = paths
    return result


def to_text() -> str:
    """Return the document as it is stored in docs/openapi.json."""
    return json.dumps(document(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(to_text())
