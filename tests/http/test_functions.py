"""The list of functions: every place that names the functions names all of them, and nothing else."""

import json
import re
import tomllib
from collections.abc import Callable

import pytest

from metrics_ingest.http.functions import FUNCTIONS, Function, owner
from support.processes import ROOT

NAMES = {function.name for function in FUNCTIONS}
COMPOSE = (ROOT / "docker-compose.yml").read_text()
GATEWAY = (ROOT / "deploy/gateway/nginx.conf").read_text()


def in_compose() -> set[str]:
    """Services with the settings of a function: each must be named as its target and its folder."""
    services = re.findall(r"^  (\w+):\n((?:    .*\n|\n)+)", COMPOSE.partition("\nservices:\n")[2], re.MULTILINE)
    return {
        name
        for name, text in services
        if f"FUNCTION_TARGET: {name}\n" in text and f"FUNCTION_SOURCE: /app/functions/{name}/main.py\n" in text
    }


def in_gateway_depends_on() -> set[str]:
    (names,) = re.findall(r"\n  gateway:\n(?:    .*\n)*?    depends_on:\n((?:      - \w+\n)+)", COMPOSE)
    return set(re.findall(r"\w+", names)) - {"front"}


def in_deploy_script() -> set[str]:
    (names,) = re.findall(r"^FUNCTIONS=\((.*)\)$", (ROOT / "deploy/deploy.sh").read_text(), re.MULTILINE)
    return set(names.split())


def in_linter() -> set[str]:
    sources = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["src"]
    return {source.removeprefix("functions/") for source in sources if source.startswith("functions/")}


def in_openapi() -> set[str]:
    document = json.loads((ROOT / "docs/openapi.json").read_text())
    return {path.strip("/").partition("/")[0] for path in document["paths"]}


PLACES: dict[str, Callable[[], set[str]]] = {
    "functions/": lambda: {path.parent.name for path in (ROOT / "functions").glob("*/main.py")},
    "docker-compose.yml: services": in_compose,
    "docker-compose.yml: gateway, depends_on": in_gateway_depends_on,
    "deploy/deploy.sh: FUNCTIONS": in_deploy_script,
    "pyproject.toml: tool.ruff, src": in_linter,
    "docs/openapi.json": in_openapi,
}


@pytest.mark.parametrize("place", PLACES)
def test_place_names_every_function(place: str) -> None:
    found = PLACES[place]()
    assert found == NAMES, f"{place}: missing {sorted(NAMES - found)}, unknown {sorted(found - NAMES)}"


def test_gateway_passes_each_path_to_the_function_that_owns_it() -> None:
    pattern, bare = re.findall(r"location ~ (\S+) \{", GATEWAY)
    location = re.compile(pattern.replace("(?<", "(?P<"))
    for function in FUNCTIONS:
        for path in function.paths:
            if path.startswith("/v1/"):
                assert function.name == "ingest_otlp"
                assert re.match(bare, path)
                assert re.match(bare, path.rstrip("/"))
                continue
            for tried in (path, path.rstrip("/"), path + "health"):
                match = location.match(tried)
                assert match, f"deploy/gateway/nginx.conf: no location matches {tried}"
                assert match["function"] == function.name
    for path in ("/", "/nothing/", "/ingestion/", "/ingest_batches", "/users.html", "/v1/", "/v1/traces", "/v1/logs/x"):
        assert not location.match(path), path
        assert not re.match(bare, path), path


def test_container_tests_run_every_function() -> None:
    text = (ROOT / "tests/containers/engine.py").read_text()
    (names,) = re.findall(r"^FUNCTIONS = \((.*)\)$", text, re.MULTILINE)
    assert set(re.findall(r"\w+", names)) == NAMES


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/ingest", "ingest"),
        ("/ingest/", "ingest"),
        ("//ingest", "ingest"),
        ("/ingest/health", "ingest"),
        ("/ingest_batch/x/y", "ingest_batch"),
        ("/", None),
        ("", None),
        ("/ingestion/", None),
        ("/x/ingest/", None),
    ],
)
def test_owner_of_a_path(path: str, name: str | None) -> None:
    found = owner(path)
    assert (found.name if found else None) == name


def test_a_function_may_own_several_paths_and_need_no_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that also takes a standard path, and a page."""
    several = Function("several", ("POST",), ("/several/", "/v1/metrics/", "/v1/logs/"), (b"application/x-protobuf",))
    page = Function("page", ("GET",), ("/page/",))
    monkeypatch.setattr("metrics_ingest.http.functions.FUNCTIONS", (several, page))
    assert owner("/v1/logs") is owner("/several/v1/logs") is several
    assert owner("/page/static/page.js") is page
    assert owner("/v1/traces") is None
