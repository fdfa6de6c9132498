"""`server.install()` is the only thing that changes uvicorn and the process; importing the package changes nothing."""

import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version

import httptools
import pytest
import uvicorn.config
import uvicorn.server
from functions_framework import _function_registry, aio
from packaging.requirements import Requirement
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.protocols.http import httptools_impl

from metrics_ingest.server.handler import without_middleware
from support.processes import ROOT, Server

STATE = """
import gc, importlib, pkgutil, sys, uvicorn.config, uvicorn.server
def state():
    protocols, startup = dict(uvicorn.config.HTTP_PROTOCOLS), uvicorn.server.Server.startup
    return gc.get_threshold(), protocols, startup, gc.get_freeze_count()
before = state()
"""
ENVIRONMENT = {"DATABASE_URL": "postgresql://nobody@localhost/none", "ALLOW_ANONYMOUS": "true"}


def run(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", STATE + code]
    return subprocess.check_output(command, env={**ENVIRONMENT, **environment}, text=True, timeout=30).strip()


def test_importing_every_module_changes_nothing() -> None:
    assert (
        run("""
import metrics_ingest
for module in pkgutil.walk_packages(metrics_ingest.__path__, "metrics_ingest."):
    if not module.name.endswith((".cloudsql", "__main__")):  # needs an extra
        importlib.import_module(module.name)
print(state() == before and len([name for name in sys.modules if name.startswith("metrics_ingest.")]) > 30)
""")
        == "True"
    )


@pytest.mark.parametrize(("chosen", "changed"), [("", [True, True, True]), ("stock", [True, False, False])])
def test_install_makes_all_changes_and_stock_leaves_uvicorn_as_it_is(chosen: str, changed: list[bool]) -> None:
    code = """
from metrics_ingest import server
server.install()
server.install()
print([is_now != was for is_now, was in zip(state()[:3], before)])
"""
    assert run(code, SERVER=chosen) == str(changed)


def test_every_function_installs_before_its_other_imports() -> None:
    """Because this also makes the imports faster: docs/benchmarks.md."""
    for path in (ROOT / "functions").glob("*/main.py"):
        before, called, _ = path.read_text().partition("\nserver.install(")
        assert called, path
        own = (
            ["from metrics_ingest.dashboard.configuration import configuration"]
            if path.parent.name == "dashboard"
            else []
        )
        assert [line for line in before.splitlines() if "import" in line] == ["from metrics_ingest import server", *own]


@pytest.mark.parametrize("chosen", ["tuned", "stock"])
def test_stock_server_has_none_of_our_limits(database_url: str, serve: Callable[..., Server], chosen: str) -> None:
    server = serve("ingest", database_url, SERVER=chosen)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Long: %s\r\n" % (b"a" * 30_000) * 3)
        if chosen == "tuned":
            assert connection.recv(12) == b"HTTP/1.1 400"
        else:
            connection.settimeout(0.5)
            with pytest.raises(TimeoutError):
                connection.recv(12)
            connection.settimeout(10)
            connection.sendall(b"\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"


def test_shapes_of_other_libraries_are_as_we_use_them() -> None:
    """When an upper bound in pyproject.toml is raised, look at what is named here; if it has changed, change ours.

    - uvicorn (server/protocol.py, server/accepting.py): HTTP_PROTOCOLS["auto"]; Server.startup(sockets); in
      httptools_impl HttpToolsProtocol (its callbacks, app, headers, pipeline, cycle, scope, send_400_response) and
      RequestResponseCycle (all that send_reply uses).
    - httptools (server/protocol.py): HttpRequestParser.get_method(), and its callbacks, by way of uvicorn.
    - starlette (http/replies.py): Response: raw_headers, body and background, and __call__, which sends them.
    - functions-framework (server/protocol.py, logs.py): the app of an async function: `app` of each layer, one route
      "/{path:path}" for POST, whose endpoint takes a Request and returns a Response. It disables loggers when it has
      imported a function.
    """
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    bounds = {req.name: req.specifier for req in map(Requirement, pyproject["project"]["dependencies"])}
    for name in ("uvicorn", "httptools", "starlette", "functions-framework"):
        assert any(bound.operator == "<" for bound in bounds[name]), f"{name} has no upper bound"
        assert version(name) in bounds[name]

    assert uvicorn.config.HTTP_PROTOCOLS.keys() >= {"auto", "httptools"}
    assert list(uvicorn.server.Server.startup.__annotations__) == ["sockets", "return"]
    protocol = httptools_impl.HttpToolsProtocol
    for name in ("data_received", "on_headers_complete", "on_body", "connection_lost", "send_400_response"):
        assert callable(getattr(protocol, name)), name
    assert set(httptools_impl.RequestResponseCycle.__init__.__annotations__) >= {
        "scope", "transport", "flow", "access_log", "access_logger", "default_headers", "message_event", "keep_alive",
        "on_response",
    }  # fmt: skip
    assert httptools_impl.STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"
    assert callable(httptools.HttpRequestParser.get_method)

    response = Response("body")
    assert {"status_code", "body", "background", "raw_headers"} <= vars(response).keys()

    async def function(request: Request) -> Response:
        return response

    app = aio._create_asgi_app_with_function(function, _function_registry.HTTP_SIGNATURE_TYPE, False)
    assert without_middleware(app) is not app
