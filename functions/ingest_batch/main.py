"""POST /ingest_batch/: many metrics, each accounted for by its position."""

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from metrics_ingest.http.headers import JSON, NDJSON, Headers, idempotency_key, media_type, prefers_strict
from metrics_ingest.http.replies import Reply, report_body
from metrics_ingest.http.service import Service
from metrics_ingest.model import batch
from metrics_ingest.settings import settings
from metrics_ingest.storage.ingest import store


@functions_framework.aio.http
async def ingest_batch(request: Request) -> Response:
    return await service.respond(request)


async def store_many(body: bytes, headers: Headers) -> Response:
    """Store the valid metrics, or with `Prefer: handling=strict` all or none; the reply accounts for every one."""
    parse = batch.parse_lines if media_type(headers) == NDJSON else batch.parse_many
    strict = prefers_strict(headers)
    report = await store(parse(body, idempotency_key(headers)), strict=strict)
    reply = Reply(report.status, report_body(report), [(b"preference-applied", b"handling=strict")] if strict else ())
    reply.rejected = report.faults
    return reply


service = Service("ingest_batch", store_many, (JSON, NDJSON), most=settings().max_batch, keeps_rejected=True)
