"""POST /ingest_batch/: many metrics, each accounted for by its position."""

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from metrics_ingest import batch
from metrics_ingest.service import JSON, NDJSON, Headers, Reply, Service, idempotency_key, media_type
from metrics_ingest.settings import settings


@functions_framework.aio.http
async def ingest_batch(request: Request) -> Response:
    return await service.respond(request)


async def store_many(body: bytes, headers: Headers) -> Response:
    """Every metric is stored, a duplicate or rejected when this returns; strictly, all of them or none are stored."""
    parse = batch.parse_lines if media_type(headers) == NDJSON else batch.parse_many
    strict = batch.is_strict(headers)
    report = await batch.store(parse(body, idempotency_key(headers)), strict=strict)
    reply = Reply(report.status, report.to_json(), [(b"preference-applied", b"handling=strict")] if strict else ())
    reply.rejected = report.faults
    return reply


service = Service("ingest_batch", store_many, (JSON, NDJSON), most=settings().max_batch, keeps_rejected=True)
