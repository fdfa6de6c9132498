"""The OpenAPI document is what the code says, valid and complete; its page works without the internet."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from openapi_spec_validator import validate

from metrics_ingest.dashboard.api import ENDPOINTS
from metrics_ingest.errors import CODES
from metrics_ingest.http import openapi
from metrics_ingest.http.functions import FUNCTIONS
from support.emulator import emulator
from support.processes import ROOT, Postgres

# Where each function takes a POST.
POSTS = {
    "/ingest/",
    "/ingest_batch/",
    "/ingest_batch/pubsub",
    "/ingest_otlp/v1/metrics",
    "/ingest_otlp/v1/logs",
    "/users/",
}
API = {f"/dashboard/api/{name}": endpoint for name, endpoint in ENDPOINTS.items()}
DOCUMENT: dict[str, Any] = json.loads((ROOT / "docs" / "openapi.json").read_text())


@pytest.fixture(scope="module", name="emulator")
def running_emulator(postgres: Postgres) -> Iterator[str]:
    with emulator(DATABASE_URL=postgres.clone()) as server:
        yield server.url


def test_kept_document_is_the_generated_one() -> None:
    """If not: python -m metrics_ingest.http.openapi > docs/openapi.json."""
    assert (ROOT / "docs" / "openapi.json").read_text() == openapi.to_text()


def test_document_is_valid() -> None:
    validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_every_function_has_its_operations() -> None:
    functions = sorted(path.parent.name for path in (ROOT / "functions").glob("*/main.py"))
    shared = {path: {"get"} for name in functions for path in (f"/{name}/", f"/{name}/health", f"/{name}/metrics")}
    own = {path: {"post"} for path in POSTS} | {path: {"get"} for path in API}
    expected = {path: shared.get(path, set()) | own.get(path, set()) for path in shared | own}
    assert {path: set(operations) for path, operations in DOCUMENT["paths"].items()} == expected
    assert {path.split("/")[1] for path in POSTS} == {f.name for f in FUNCTIONS if "POST" in f.methods}


def test_every_parameter_of_the_dashboards_api_is_documented() -> None:
    for path, endpoint in API.items():
        parameters = DOCUMENT["paths"][path]["get"]["parameters"]
        resolved = [
            DOCUMENT["components"]["parameters"][one["$ref"].split("/")[-1]] if "$ref" in one else one
            for one in parameters
        ]
        assert [(one["name"], one["in"]) for one in resolved] == [
            (name, "query") for name in (*endpoint.parameters, "format")
        ], path


def test_request_bodies_are_of_the_types_that_the_functions_read() -> None:
    for function in FUNCTIONS:
        posts = [DOCUMENT["paths"][path]["post"] for path in POSTS if path.startswith(f"/{function.name}/")]
        read = {media_type for post in posts for media_type in post["requestBody"]["content"]}
        assert read == {media_type.decode() for media_type in function.media_types}


def test_every_code_is_in_the_document_under_its_status() -> None:
    for code, status in CODES.items():
        assert code in DOCUMENT["components"]["responses"][f"Problem{status.value}"]["description"]
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["Code"]["enum"] == list(CODES)
    for name in ("Problem", "Error", "BatchError"):
        assert schemas[name]["properties"]["code"] == {"$ref": "#/components/schemas/Code"}


def test_examples_are_accepted(stack: Any) -> None:
    for name in ("users", "ingest", "ingest_batch"):
        for media_type, content in DOCUMENT["paths"][f"/{name}/"]["post"]["requestBody"]["content"].items():
            examples = content.get("examples", {"only": {"value": content.get("example")}})
            for example in (one["value"] for one in examples.values()):
                body = example if isinstance(example, str) else json.dumps(example)
                headers = {"Content-Type": media_type}
                answer = requests.post(getattr(stack, name).url, data=body, headers=headers, timeout=10)
                assert answer.status_code in (200, 201), answer.text


def test_emulator_serves_the_document(emulator: str) -> None:
    answer = requests.get(f"{emulator}/openapi.json", timeout=10)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == DOCUMENT


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_page_brings_all_it_needs(emulator: str, path: str) -> None:
    page = requests.get(emulator + path, timeout=10)
    assert page.headers["Content-Type"].startswith("text/html")
    assert "//" not in page.text  # nothing from elsewhere
    for asset in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        answer = requests.get(emulator + asset, timeout=10)
        assert (answer.status_code, len(answer.content) > 500) == (200, True), asset


@pytest.mark.parametrize("path", ["/docs/nothing", "/docs/..%2f..%2fflask_swagger_ui.py", "/openapi.json/x"])
def test_page_has_nothing_else(emulator: str, path: str) -> None:
    answer = requests.get(emulator + path, timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
