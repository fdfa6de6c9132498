"""A function's own handler, without the layers that functions-framework puts before it."""

from functools import cache

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send


@cache
def without_middleware(app: ASGIApp) -> ASGIApp:
    """Return functions-framework's handler of the function as an app, without the layers before it.

    These are eight layers and four routes, a fifth of a request's CPU time (docs/benchmarks.md). A function that
    replies to its own errors needs none of them, and they reply as text to some requests: other methods, /robots.txt,
    a line feed in the path. Return an app of any other shape as it is.
    """
    inner = app
    while not hasattr(inner, "routes") and hasattr(inner, "app"):
        inner = inner.app
    handlers = [
        route.endpoint
        for route in getattr(inner, "routes", ())
        if getattr(route, "path", "") == "/{path:path}" and "POST" in (route.methods or ())
    ]
    if len(handlers) != 1:
        return app
    (handler,) = handlers

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        response = await handler(Request(scope, receive, send))
        await response(scope, receive, send)

    return serve
