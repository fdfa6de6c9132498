"""GET /dashboard/…: a page that shows what is stored, and the read-only API under it."""

from metrics_ingest import server
from metrics_ingest.dashboard.configuration import configuration

server.install(configuration().server)  # before the other imports, as in the other functions

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from metrics_ingest.dashboard.service import Dashboard


@functions_framework.aio.http
async def dashboard(request: Request) -> Response:
    return await service.respond(request)


service = Dashboard()
