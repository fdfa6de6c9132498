"""`make run`: the cloud on one port. Every function, loaded by functions-framework from the file that the cloud runs."""

import asyncio
import json
import os
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import uvicorn
from functions_framework import create_app
from starlette.types import ASGIApp, Receive, Scope, Send

from metrics_ingest import migrations
from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.service import JSON, Reply, problem
from metrics_ingest.settings import BadSetting, Settings

FUNCTIONS = ("ingest", "ingest_batch", "users")


class Dispatcher:
    """The first path segment picks the function; the path is passed on as it is, with or without a trailing slash."""

    def __init__(self, functions: dict[str, ASGIApp]) -> None:
        self._functions = functions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            return
        segment = scope["path"].strip("/").partition("/")[0]
        app = self._functions.get(segment)
        if app is None:
            app = self._index if not segment and scope["method"] in ("GET", "HEAD") else _not_found(scope["path"])
        await app(scope, receive, send)

    @property
    def _index(self) -> ASGIApp:
        return Reply(200, json.dumps({"functions": [f"/{name}/" for name in self._functions]}).encode(), None, JSON)


def _not_found(path: str) -> ASGIApp:
    return problem(RequestRefused(Fault("not_found", f"no function owns the path {path[:200]!r}")))


def load(directory: Path) -> Dispatcher:
    """Load every function below `directory` (functions/<name>/main.py)."""
    loaded: dict[str, Any] = {}
    for name in FUNCTIONS:
        loaded[name] = create_app(name, str(directory / name / "main.py"), "http")
    return Dispatcher(loaded)
