"""`make run`: all functions on one port, loaded by functions-framework from the same files as in the cloud."""

import ipaddress
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pg8000.exceptions
import uvicorn
from functions_framework import create_app
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.http import openapi
from metrics_ingest.http.functions import FUNCTIONS, owner
from metrics_ingest.http.replies import Reply, problem
from metrics_ingest.server.handler import without_middleware
from metrics_ingest.settings import settings
from metrics_ingest.storage import migrations
from metrics_ingest.storage.driver import reason_of

OTHER_HOST = "the emulator is called localhost; to give it another name, set HOST"
ROOT = Path(__file__).parents[3]
READY_MESSAGE = """\
metrics-ingest is ready:
{routes}

try it:
  curl {base}/users/ -H 'Content-Type: application/json' \\
    -d '{{"user_id":"b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d","name":"Greg","email":"greg@gmail.com"}}'
  curl {base}/ingest/ -H 'Content-Type: application/json' \\
    -d '{{"user_id":"b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d","metric_type":"talked_time","value":12.34,\
"timestamp":"2024-08-08T12:34:56Z"}}'
see what is stored:
  echo 'SELECT * FROM metrics' | {psql}

stop with Ctrl-C
"""
DOCS = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>metrics-ingest</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
</head>
<body>
<p>For pages: <a href="/client.js">/client.js</a>, a client that delivers each metric exactly once.</p>
<div id="docs"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "/openapi.json", dom_id: "#docs", validatorUrl: null, tryItOutEnabled: true})</script>
</body>
</html>
"""


class Dispatcher:
    """Passes each request to the function that owns its path. The path is not changed."""

    def __init__(self, functions: dict[str, ASGIApp], host: str) -> None:
        """`host` is the address that the emulator listens on, or a name of it."""
        self._functions = functions
        self._host = host
        self._docs = _docs()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (the ASGI interface)."""
        if not self._is_own_host(scope):
            await problem(RequestRefused(Fault("forbidden_origin", OTHER_HOST)))(scope, receive, send)
            return
        segment = scope["path"].strip("/").partition("/")[0]
        app: ASGIApp | None
        if not segment and scope["method"] in ("GET", "HEAD"):
            app = Reply(200, to_json({"functions": [f"/{name}/" for name in self._functions]}))
        else:
            function = owner(scope["path"])
            owned = self._functions[function.name] if function else None
            app = self._docs if segment in ("docs", "openapi.json", "client.js") else owned
        await (app or _not_found(scope))(scope, receive, send)

    def _is_own_host(self, scope: Scope) -> bool:
        """Return whether the Host is an address, a name of this machine for itself, or HOST.

        A page whose name its owner makes resolve to 127.0.0.1 (DNS rebinding) has the same origin as the emulator for
        the browser, but sends its own name as Host. A client that sends none is no browser.
        """
        authority = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
        host = re.sub(r":\d*$", "", authority).strip("[]").removesuffix(".")
        if host in ("", "localhost", self._host.lower()) or host.endswith(".localhost"):
            return True
        try:
            return bool(ipaddress.ip_address(host))
        except ValueError:
            return False


def _docs() -> ASGIApp:
    """Serve the browser client, the OpenAPI document, and Swagger UI from its wheel (extra `local`)."""

    async def document(_: Request) -> Response:
        return Response(openapi.to_text(), media_type="application/json")

    async def page(_: Request) -> Response:
        return HTMLResponse(DOCS)

    async def client(_: Request) -> Response:
        file = ROOT / "clients" / "browser" / "metrics-ingest.classic.js"
        headers = {"Access-Control-Allow-Origin": "*"}  # for pages of other origins that import it
        return FileResponse(file, media_type="text/javascript", headers=headers)

    async def missing(request: Request, _: Exception) -> Response:
        return _not_found(request.scope)

    routes: list[BaseRoute] = [Route("/openapi.json", document), Route("/client.js", client)]
    if found := find_spec("flask_swagger_ui"):  # not imported, because that would import Flask
        assets = StaticFiles(directory=Path(str(found.origin)).parent / "dist")
        routes += [Route("/docs", page), Route("/docs/", page), Mount("/docs", assets)]
    return Starlette(routes=routes, exception_handlers={404: missing, 405: missing})


def _not_found(scope: Scope) -> Response:
    return problem(RequestRefused(Fault("not_found", f"no function serves the path {scope['path'][:200]!r}")))


def load(directory: Path, host: str) -> Dispatcher:
    """Load each function from its file in `directory` (<name>/main.py)."""
    names = [function.name for function in FUNCTIONS]
    apps = {name: create_app(name, str(directory / name / "main.py"), "http") for name in names}
    return Dispatcher({name: without_middleware(app) for name, app in apps.items()}, host)


def main() -> None:
    """Serve until SIGINT or SIGTERM. Raise SystemExit with one line when a setting cannot be used."""
    # Before uvicorn installs its own handlers, SIGTERM must exit through the `finally` that stops the database.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.environ.setdefault("ALLOW_ANONYMOUS", "true")
    host = os.environ.get("HOST") or "127.0.0.1"
    listener = _listen(host, os.environ.get("PORT") or "8000")
    with suppress(KeyboardInterrupt), _database() as psql:  # uvicorn raises it again after it has stopped
        functions = load(ROOT / "functions", host)
        _announce(f"http://{host}:{listener.getsockname()[1]}", psql)
        config = uvicorn.Config(functions, log_level="warning", access_log=False, lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: str) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=2048)
    except (ValueError, OverflowError):
        raise SystemExit(f"metrics-ingest: PORT must be a number from 0 to 65535, not {port!r}") from None
    except OSError as error:
        raise SystemExit(
            f"metrics-ingest: cannot listen on {host}:{port} ({error.strerror}); try another port: make run PORT=8001"
        ) from None


@contextmanager
def _database() -> Iterator[str]:
    """Migrate the configured database, or an embedded one that DATABASE_URL then names; yield a psql command for it."""
    if os.environ.get("DATABASE_URL") or os.environ.get("PGHOST"):
        _migrate()
        yield 'psql "$DATABASE_URL"'
        return
    from metrics_ingest.local import postgres

    try:
        with postgres.run_server() as url:
            os.environ["DATABASE_URL"] = url
            _migrate()
            yield "make psql"
    except postgres.AlreadyRunning as error:
        raise SystemExit(f"metrics-ingest: {error}; is `make run` running already?") from None


def _migrate() -> None:
    database = settings().database
    try:
        migrations.migrate(database)
    except (migrations.UnknownMigrations, pg8000.exceptions.Error, OSError) as error:
        where = f"{database.host}:{database.port}/{database.database}"
        reason = f"cannot use the database at {where}: {reason_of(error)}"
        raise SystemExit(f"metrics-ingest: DATABASE_URL: {reason}") from None


def _announce(base: str, psql: str) -> None:
    routes = "\n".join(
        f"  {method} {base}{path}" for function in FUNCTIONS for method in function.methods for path in function.paths
    )
    sys.stdout.write(READY_MESSAGE.format(routes=routes, base=base, psql=psql))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
