"""The list of functions. A new function is a folder functions/<name>/ and an entry here.

The emulator, the OpenAPI document and its liveness models are made from this list; tests/http/test_functions.py checks
every other place that names the functions (Compose, gateway, deployment, linter) against it.
"""

from dataclasses import dataclass

JSON = b"application/json"
NDJSON = b"application/x-ndjson"
PROTOBUF = b"application/x-protobuf"
NDJSON_ALIASES = (b"application/ndjson", b"application/jsonl", b"application/jsonlines", b"application/x-jsonlines")


@dataclass(frozen=True, slots=True)
class Function:
    """One function: what it is called, and which requests it takes behind the address that all functions share.

    `name` is its folder, its FUNCTION_TARGET and its Compose service. `methods` are those of its own work; every
    function also answers GET and HEAD (liveness, health). `paths` are prefixes: each owns itself and all below it.
    `media_types` are those of the bodies that it reads.
    """

    name: str
    methods: tuple[str, ...]
    paths: tuple[str, ...]
    media_types: tuple[bytes, ...] = ()


FUNCTIONS = (
    Function("dashboard", ("GET",), ("/dashboard/",)),
    Function("ingest", ("POST",), ("/ingest/",), (JSON,)),
    Function("ingest_batch", ("POST",), ("/ingest_batch/",), (JSON, NDJSON)),
    Function("ingest_otlp", ("POST",), ("/ingest_otlp/", "/v1/metrics/", "/v1/logs/"), (PROTOBUF, JSON)),
    Function("users", ("POST",), ("/users/",), (JSON,)),
)
BY_NAME = {function.name: function for function in FUNCTIONS}


def owner(path: str) -> Function | None:
    """Return the function that owns a request's path, with or without a trailing slash, or None."""
    path = "/" + path.strip("/") + "/"
    return next((function for function in FUNCTIONS if path.startswith(function.paths)), None)
