"""The HTTP contract as an OpenAPI 3.1 document: `python -m metrics_ingest.http.openapi > docs/openapi.json`.

openapi_base.json has what is written by hand. From the code come the version, the schemas of requests, the error
codes, the problem of each status, the names of the functions, and the paths that all functions have (`/{function}/…`).
"""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from metrics_ingest import __version__
from metrics_ingest.errors import CODES
from metrics_ingest.http.functions import FUNCTIONS
from metrics_ingest.model.metric import Metric
from metrics_ingest.model.user import User

BASE = Path(__file__).with_name("openapi_base.json")


def document() -> dict[str, Any]:
    """Return the OpenAPI document as Python's own types."""
    result: dict[str, Any] = json.loads(BASE.read_text())
    result["info"]["version"] = __version__
    result["paths"] = _paths(result["paths"])
    result["components"]["schemas"] |= {
        "Metric": TypeAdapter(Metric).json_schema(),
        "User": TypeAdapter(User).json_schema(),
        "Code": {"type": "string", "enum": list(CODES)},
        "FunctionName": {"type": "string", "enum": [function.name for function in FUNCTIONS]},
    }
    responses = result["components"]["responses"]
    for status in sorted(set(CODES.values())):
        response = responses.setdefault(f"Problem{status.value}", {})
        codes = ", ".join(code for code in CODES if CODES[code] == status)
        response["description"] = f"{codes}. {response.get('description', '')}".strip()
        response["content"] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return result


def _paths(base: dict[str, Any]) -> dict[str, Any]:
    """Return the paths, with those that contain `{function}` repeated for each function."""
    shared = json.dumps({path: base.pop(path) for path in list(base) if "{function}" in path})
    paths: dict[str, Any] = {}
    for function in FUNCTIONS:
        paths |= json.loads(shared.replace("{function}", function.name))
    for path, operations in base.items():
        paths[path] = paths.get(path, {}) | operations
    return paths


def to_text() -> str:
    """Return the document as it is stored in docs/openapi.json."""
    return json.dumps(document(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(to_text())
