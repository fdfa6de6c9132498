"""POST /ingest/: one metric."""

import functions_framework.aio
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from metrics_ingest import batch
from metrics_ingest.errors import RequestRefused
from metrics_ingest.service import Reply, Service, idempotency_key


@functions_framework.aio.http
async def ingest(request: Request) -> Response:
    return await service.respond(request)


async def store_one(body: bytes, headers: Headers) -> Response:
    """A batch of one: the metric is stored when this returns, and the answer says whether it had been before."""
    report = await batch.store(batch.parse_one(body, idempotency_key(headers)))
    if report.faults:
        raise RequestRefused(*report.faults[0])
    reply_headers = {"Metric-Id": str(report.metrics[0]["metric_id"])}
    if report.duplicates:
        reply_headers["Idempotent-Replayed"] = "true"
    return Reply(200, b'{"message":"Metric stored successfully!"}', reply_headers)


service = Service("ingest", store_one)
