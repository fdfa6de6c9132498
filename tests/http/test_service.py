"""What all functions share: liveness, health, paths, and how they start."""

import os
import subprocess
from typing import Any

import pytest
import requests

from support.processes import BIN, ROOT, Stack, free_port

FUNCTIONS = ("ingest", "ingest_batch", "users")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_get_is_liveness_and_names_the_function(stack: Stack, name: str) -> None:
    for path in ("/", f"/{name}/", f"/{name}"):
        answer = requests.get(getattr(stack, name).url + path, timeout=10)
        assert answer.status_code == 200
        assert answer.json() == {"function": name, "version": "0.1.0", "status": "ok"}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("path", ["/health", "/{name}/health", "/{name}/health/"])
def test_health_asks_the_database(stack: Stack, name: str, path: str) -> None:
    answer = requests.get(getattr(stack, name).url + path.format(name=name), timeout=10)
    assert (answer.status_code, answer.json()["database"]) == (200, "ok")


def test_head_is_get_without_a_body(stack: Stack) -> None:
    answer = requests.head(stack.ingest.url, timeout=10)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["", "/", "/ingest", "/ingest/", "/any/path?with=query"])
def test_any_path_is_the_function(stack: Stack, metric: dict[str, Any], path: str) -> None:
    answer = requests.post(stack.ingest.url + path, json=metric, timeout=10, allow_redirects=False)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"DATABASE_URL": ""}, "DATABASE_URL is not set"),
        ({"DATABASE_URL": "mysql://x@y/z"}, "DATABASE_URL must begin with postgresql://"),
        ({"ALLOW_ANONYMOUS": ""}, "API_KEYS is not set"),
        ({"MAX_BATCH": "many"}, "MAX_BATCH must be a whole number"),
        ({"WRITE_LANES": "0"}, "WRITE_LANES must be a whole number from 1"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL must be one of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_setting_stops_the_start_with_its_name(environment: dict[str, str], line: str) -> None:
    good = {"DATABASE_URL": "postgresql://u:secret@localhost/d", "ALLOW_ANONYMOUS": "true", "PATH": os.environ["PATH"]}
    source = ROOT / "functions" / "ingest" / "main.py"
    done = subprocess.run(
        [BIN / "functions-framework", "--target", "ingest", "--source", source, "--port", str(free_port())],
        env=good | environment, cwd="/", capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().startswith(f"metrics-ingest: {line}")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "secret" not in done.stderr
