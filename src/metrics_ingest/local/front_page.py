"""What stands at the address that all functions share, beside them: front page, API page, health of all, 404.

The emulator serves it in its own process. In Compose it is a service of its own (`python -m
metrics_ingest.local.front_page`), to which the gateway passes every path that no function owns.
"""

import asyncio
import html
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import uvicorn
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from metrics_ingest import __version__
from metrics_ingest.dashboard import database_state
from metrics_ingest.dashboard.service import SECURITY
from metrics_ingest.errors import Fault, RequestRefused, StoreUnavailable
from metrics_ingest.http import openapi
from metrics_ingest.http.functions import FUNCTIONS, Function
from metrics_ingest.http.replies import Reply, problem
from metrics_ingest.telemetry import telemetry

PATHS = ("/", "/docs", "/health", "/openapi.json", "/client.js")
HEALTH_TIMEOUT_S = 4.0  # more than a function waits for its database
CLIENT = Path(__file__).parents[3] / "clients" / "browser" / "metrics-ingest.classic.js"
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SHARED = ("style.css", "dom.js", "icon.svg")  # files of the dashboard that the front page uses
API_PAGE = """<!DOCTYPE html>
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


class FunctionsUnavailable(StoreUnavailable):
    """At least one function does not reach its database, or does not answer; a fault for each, `field` is its name."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        super().__init__("; ".join(faults.values()))
        self.faults = tuple(Fault("store_unavailable", detail, name) for name, detail in faults.items())


def front_page(health_urls: Mapping[str, str], *, with_metrics: bool = False) -> Starlette:
    """Make the application. `health_urls` are the addresses of each function's health check, by its name.

    `with_metrics` serves /metrics, for a process in which all functions run.
    """

    async def index(request: Request) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return Reply(200, to_json({"functions": [path for f in FUNCTIONS for path in f.paths[:1]]}), VARY)
        response = HTMLResponse(page, headers={"Vary": "Accept", "Cache-Control": "no-cache"})
        response.raw_headers.extend(SECURITY)
        return response

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        return (
            Response(assets[name], media_type=MEDIA_TYPES[Path(name).suffix]) if name in assets else not_found(request)
        )

    async def health(_: Request) -> Response:
        return await _health(health_urls)

    async def document(_: Request) -> Response:
        return Response(openapi.to_text(), media_type="application/json")

    async def api_page(_: Request) -> Response:
        return HTMLResponse(API_PAGE)

    async def client(request: Request) -> Response:
        if not CLIENT.exists():  # in the image, where the gateway has it
            return not_found(request)
        headers = {"Access-Control-Allow-Origin": "*"}  # for pages of other origins that import it
        return FileResponse(CLIENT, media_type="text/javascript", headers=headers)

    async def missing(request: Request, _: Exception) -> Response:
        return not_found(request)

    page, assets = _page(), _assets()
    routes: list[BaseRoute] = [
        Route("/", index),
        Route("/front/{name}", asset),
        Route("/health", health),
        Route("/openapi.json", document),
        Route("/client.js", client),
    ]
    if with_metrics:
        routes.append(Route("/metrics", metrics))
    if swagger_ui := _swagger_ui():
        routes += [
            Route("/docs", api_page),
            Route("/docs/", api_page),
            Mount("/docs", StaticFiles(directory=swagger_ui)),
        ]
    application = Starlette(routes=routes, exception_handlers={404: missing, 405: missing})
    application.router.redirect_slashes = False
    return application


async def metrics(request: Request) -> Response:
    """Return what all functions of this process have counted, and the state of their database."""
    counted = telemetry()
    if not counted:
        return not_found(request)
    body = counted.exposition() + await database_state.exposition()
    return Reply(200, body, media_type=counted.content_type)


VARY = ((b"vary", b"Accept"),)


def not_found(request: Request) -> Reply:
    """Return the 404 that lists the paths that exist."""
    paths = ", ".join([*PATHS, *(path for function in FUNCTIONS for path in function.paths)])
    return problem(
        RequestRefused(Fault("not_found", f"nothing is served at {request.url.path[:200]!r}; there are {paths}"))
    )


async def _health(urls: Mapping[str, str]) -> Reply:
    """Ask every function at once: 200 when all reach their database, else 503 with a fault for each that does not."""
    answers = await asyncio.gather(*(asyncio.to_thread(_fault, url) for url in urls.values()))
    faults = {name: f"{name}: {answer}" for name, answer in zip(urls, answers, strict=True) if answer}
    if faults:
        return problem(FunctionsUnavailable(faults))
    return Reply(200, to_json({"version": __version__, "status": "ok", "functions": dict.fromkeys(urls, "ok")}))


def _fault(url: str) -> str | None:
    """Return why a function is not healthy, or None. It blocks for at most HEALTH_TIMEOUT_S."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows none of these addresses
    try:
        with opener.open(url, timeout=HEALTH_TIMEOUT_S):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"its health check answers {error.code}"
    except OSError:
        return "no instance of the function answers"


def _page() -> str:
    """Return the front page, with a row for each function."""
    text = (resources.files("metrics_ingest.local") / "front" / "index.html").read_text()
    paths = openapi.document()["paths"]
    rows = "\n".join(_row(function, paths) for function in FUNCTIONS)
    return text.replace("{version}", html.escape(__version__)).replace("{functions}", rows)


def _row(function: Function, paths: Mapping[str, Any]) -> str:
    method, own = function.methods[0], f"/{function.name}/"
    operations = (
        methods[method.lower()] for path, methods in paths.items() if path.startswith(own) and method.lower() in methods
    )
    endpoints = "".join(f'<span class="endpoint">{method} {path}</span>' for path in function.paths)
    return (
        f'<tr><th scope="row">{endpoints}</th><td class="what">{html.escape(next(operations)["summary"])}</td>'
        f'<td><span class="state" data-function="{function.name}">…</span></td></tr>'
    )


def _assets() -> dict[str, bytes]:
    own = resources.files("metrics_ingest.local") / "front"
    shared = resources.files("metrics_ingest.dashboard") / "static"
    files = [own / "front.css", own / "front.js", *(shared / name for name in SHARED)]
    return {file.name: file.read_bytes() for file in files}


def _swagger_ui() -> Path | None:
    """Return the folder of Swagger UI: that of its wheel (extra `local`), or in the image what was copied from it."""
    if found := find_spec("flask_swagger_ui"):  # not imported, because that would import Flask
        return Path(str(found.origin)).parent / "dist"
    copied = Path(sys.prefix) / "share" / "swagger-ui"
    return copied if copied.exists() else None


def main() -> None:
    """Serve it in Compose, where each function is a service of its own name."""
    urls = {function.name: f"http://{function.name}:8080/{function.name}/health" for function in FUNCTIONS}
    port = int(os.environ.get("PORT") or 8080)
    uvicorn.run(front_page(urls), host="0.0.0.0", port=port, log_level="warning", access_log=False)  # noqa: S104  # in a container


if __name__ == "__main__":
    main()
