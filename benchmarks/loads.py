"""What is sent to which servers, workload by workload."""

from dataclasses import dataclass

from benchmarks.servers import PYTHONS

SINGLE, BATCH = "ingest", "ingest_batch"
STACKS = ("ours", "fastapi", "fastapi-tx", "flask", "fastify-postgres", "fastify-pg", "bun", "sync")
BULK = ("ours", "fastapi", "fastify-postgres", "bun")
PROCESSES = ("ours-w2", "fastapi-w2", "fastify-postgres-w2")
NEWER = tuple(f"ours-py{python}" for python in PYTHONS)  # the same code; ours runs on the Python of `make bench`
DIRECT = ("copy", "copy-2", "pgbench")  # no servers: they write to our own table


@dataclass(frozen=True)
class Load:
    """One workload: `size` metrics in a request, or 0 for one that is not in an array."""

    title: str
    function: str
    connections: int
    size: int
    servers: tuple[str, ...]
    retried: bool = False  # each request has been stored before: all metrics are duplicates


LOADS = {
    "single": Load(
        "One metric a request, 64 connections", SINGLE, 64, 0, (*STACKS, "pgbench", "empty", *PROCESSES, *NEWER)
    ),
    "eight": Load("One metric a request, 8 connections", SINGLE, 8, 0, (*STACKS, "pgbench", "empty")),
    "lone": Load("One metric a request, 1 connection", SINGLE, 1, 0, (*STACKS, "pgbench", "empty", *NEWER)),
    "tens": Load("10 metrics a request, 64 connections", BATCH, 64, 10, BULK),
    "batch": Load(
        "1,000 metrics a request, 4 connections",
        BATCH,
        4,
        1000,
        (*BULK, "ours-otlp", "copy", "copy-2", *PROCESSES, *NEWER),
    ),
    "retry": Load("1,000 metrics a request, 4 connections, all stored before", BATCH, 4, 1000, BULK, retried=True),
    "crowd": Load("One metric a request, 1,000 connections", SINGLE, 1000, 0, (*BULK, "ours-w2")),
}
START = (*STACKS, "empty", "ours-otlp", *NEWER)
