"""GET /dashboard/…: a page that shows what is stored, and the read-only API under it."""

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from metrics_ingest.dashboard.service import Dashboard


@functions_framework.aio.http
async def dashboard(request: Request) -> Response:
    return await service.respond(request)


service = Dashboard()
