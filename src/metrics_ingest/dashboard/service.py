"""The function `dashboard`: which path is what, who may read, and the headers that every reply carries."""

import logging
from functools import cache
from http import HTTPStatus

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from metrics_ingest import __version__, logs
from metrics_ingest.dashboard import api, database_state, page
from metrics_ingest.dashboard.configuration import Configuration, configuration
from metrics_ingest.dashboard.reader import reader
from metrics_ingest.errors import CODES, Fault, RequestRefused
from metrics_ingest.http.auth import authenticate
from metrics_ingest.http.headers import Headers, combined
from metrics_ingest.http.replies import Reply, problem
from metrics_ingest.telemetry import telemetry

NAME = "dashboard"
# No script, style, font, image or request but from this very origin, and no page may frame this one.
SECURITY = (
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

logger = logging.getLogger(__name__)


class Dashboard:
    """Answers GET and HEAD: the page, its files, the API, liveness and health. It has no way to write."""

    def __init__(self) -> None:
        self.configuration: Configuration = configuration()
        self.telemetry = telemetry()

    async def respond(self, request: Request) -> Response:
        """Answer any request. Every error becomes problem+json."""
        _configure_logging(self.configuration.log_level)
        code = ""
        try:
            response = await self._answer(request)
        except Exception as error:  # noqa: BLE001  # the last resort: a defect becomes internal_error with a correlation id
            if isinstance(error, RequestRefused):
                facts = {"function": NAME, "status": CODES[error.code].value, "code": error.code}
                logger.info("request refused", extra={"facts": facts | logs.trace(request.scope["headers"])})
            response = reply = problem(error, logs.trace(request.scope["headers"]))
            code = reply.code
        if self.telemetry:
            self.telemetry.request(NAME, response.status_code, code)
        response.raw_headers.extend(SECURITY)
        return response

    async def _answer(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            raise RequestRefused(
                Fault("method_not_allowed", f"{request.method} is not served here; send a GET"),
                headers={"Allow": "GET, HEAD"},
            )
        headers = combined(request.scope["headers"])
        path: str = request.scope["path"]
        segments = path.strip("/").split("/") if path.strip("/") else []
        if segments[:1] == [NAME]:
            segments = segments[1:]
            if not segments:
                return self._page(path, headers)
        match segments:
            case []:
                return self._front(headers)
            case ["health"]:
                await reader().read(api.health)
                return _status(database="ok")
            case ["metrics"] if self.telemetry:
                counted = self.telemetry.exposition() + await database_state.exposition()
                return Reply(200, counted, media_type=self.telemetry.content_type)
            case ["api", name] if name in api.ENDPOINTS:
                authenticate(headers, self.configuration.read_keys)
                return await api.answer(name, request.scope["query_string"])
            case ["static", *rest]:
                if response := page.send("/".join(rest), headers):
                    return response
        raise RequestRefused(
            Fault(
                "not_found",
                f"nothing is served at {path[:200]!r}; there are /dashboard/ and, under /dashboard/api/, "
                f"{', '.join(api.ENDPOINTS)}",
            )
        )

    def _page(self, path: str, headers: Headers) -> Response:
        """The page. Its addresses are relative, so that it works behind any prefix, and need the slash at the end."""
        if not path.endswith("/"):
            return RedirectResponse(f"{NAME}/", 308)
        response = page.send(page.INDEX, headers)
        assert response is not None
        return response

    def _front(self, headers: Headers) -> Response:
        """For a browser the way to the page, for everybody else liveness."""
        if b"text/html" in headers.get(b"accept", b""):
            return RedirectResponse(f"{NAME}/", 307)
        return _status(status="ok")


def _status(**facts: str) -> Response:
    return Reply(HTTPStatus.OK, to_json({"function": NAME, "version": __version__, **facts}))


@cache
def _configure_logging(level: str) -> None:
    """Once, by the first request: the framework has set up its own logging by then."""
    logs.configure(level)
