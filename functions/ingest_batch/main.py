"""POST /ingest_batch/: many metrics, each accounted for by its position. POST …/pubsub: the same, pushed."""

from metrics_ingest import server

server.install()  # before the other imports, which take 20 ms less with its gc threshold

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from metrics_ingest.http.functions import NDJSON
from metrics_ingest.http.headers import Headers, idempotency_key, media_type, prefers_strict
from metrics_ingest.http.pubsub import PubsubService, Push, is_push
from metrics_ingest.http.replies import Reply, report_reply
from metrics_ingest.http.service import Service
from metrics_ingest.model import batch
from metrics_ingest.settings import settings
from metrics_ingest.steps import in_turns
from metrics_ingest.storage.ingest import store
from metrics_ingest.storage.quarantine import Rejected


@functions_framework.aio.http
async def ingest_batch(request: Request) -> Response:
    return await (pushes if is_push(request.scope["path"]) else service).respond(request)


async def store_many(body: bytes, headers: Headers) -> Reply:
    """Store all valid metrics (strict: all or none) and report stored, duplicate and rejected ones after the commit."""
    parse = batch.parse_lines_steps if media_type(headers) == NDJSON else batch.parse_many_steps
    strict = prefers_strict(headers)
    received = await in_turns(parse(body, idempotency_key(headers)))
    report = await store(received, strict=strict)
    reply = report_reply(report, strict=strict)
    reply.rejected = Rejected(report.faults, received.sent)
    return reply


async def store_push(push: Push) -> Rejected:
    """Store all valid metrics of a pushed message, and return the others. Its id gives ids to metrics without one."""
    parse = batch.parse_lines if push.ndjson else batch.parse_many
    received = parse(push.data, push.key)
    return Rejected((await store(received)).faults, received.sent)


service = Service("ingest_batch", store_many, max_items=settings().max_batch, keeps_rejected=True)
pushes = PubsubService("ingest_batch", store_push, service.memory)
