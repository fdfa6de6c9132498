"""POST …/v1/metrics and …/v1/logs: what OpenTelemetry SDKs and collectors send, by OTLP/HTTP."""

from metrics_ingest import server

server.install()

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from metrics_ingest.http.headers import Headers, media_type
from metrics_ingest.http.replies import Reply
from metrics_ingest.otlp.replies import success
from metrics_ingest.otlp.service import OtlpService
from metrics_ingest.otlp.signals import Signal, signal_of
from metrics_ingest.otlp.storing import read, store_records


@functions_framework.aio.http
async def ingest_otlp(request: Request) -> Response:
    return await services[signal_of(request.scope["path"])].respond(request)


async def store(signal: Signal, body: bytes, headers: Headers) -> Reply:
    """Store all valid records and reply 200 after the commit, with the number of the refused ones and why."""
    outcome = await store_records(read(signal, media_type(headers), body))
    reply = success(signal, media_type(headers), outcome)
    reply.rejected = outcome.rejected()
    return reply


services = OtlpService.of_each_signal("ingest_otlp", store)
