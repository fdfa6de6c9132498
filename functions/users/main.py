"""POST /users/: register the user whom metrics belong to, or update its name and email."""

import functions_framework.aio
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from metrics_ingest.service import Headers, Reply, Service, idempotency_key
from metrics_ingest.users import parse, register


@functions_framework.aio.http
async def users(request: Request) -> Response:
    return await service.respond(request)


async def store_user(body: bytes, headers: Headers) -> Response:
    """201 for a new user, 200 for one that existed, with what is stored now."""
    user, created = await register(parse(body, idempotency_key(headers)))
    return Reply(201 if created else 200, to_json(user))


service = Service("users", store_user)
