"""The servers that are compared, each a real process started as its documentation says."""

import http.client
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil

from benchmarks import otlp
from benchmarks.database import Postgres

ROOT = Path(__file__).parents[1]
HERE = "benchmarks/peers"
OURS = str(Path(sys.executable).parent)
PEERS = str(ROOT / ".local/bench-venv/bin")
FRAMEWORK = (
    f"{OURS}/functions-framework", "--host", "127.0.0.1", "--port", "{port}", "--target", "{function}", "--source"
)  # fmt: skip
BUN = str(ROOT / HERE / "bun/node_modules/bun/bin/bun.exe")  # the name that npm's package gives it on every system
PYTHONS = ("3.12", "3.13", "3.14")  # bench.mk has them, too
SAMPLE_S = 0.25


@dataclass(frozen=True)
class Server:
    """How to start one: in `command` and `environment`, {port}, {function} and {workers} are filled in."""

    title: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    database: str | None = "peers"

    def missing(self) -> str | None:
        """Why it cannot be started here, or None."""
        program = self.command[0]
        if program == BUN and shutil.which(program) is None:
            return "Bun is not installed (npm ci in benchmarks/peers/bun)"
        if shutil.which(program) is None:
            return f"{Path(program).name} is not installed"
        if program == "node" and not (ROOT / HERE / "node/node_modules/fastify").is_dir():
            return "its packages are not installed (npm ci in benchmarks/peers/node)"
        return None


FASTAPI = (
    f"{PEERS}/uvicorn", "fastapi_asyncpg:app", "--app-dir", HERE, "--port", "{port}", "--workers", "{workers}",
    "--loop", "uvloop", "--http", "httptools", "--no-access-log",
)  # fmt: skip
FLASK = (
    f"{PEERS}/gunicorn", "flask_psycopg:app", "--chdir", HERE, "--bind", "127.0.0.1:{port}", "--workers", "{workers}",
    "--worker-class", "gthread", "--threads", "16", "--worker-connections", "4000", "--keep-alive", "60",
)  # fmt: skip
# Pools of 4 to 32, Flask's threads from 8 to 64 and the sync function's from 4 to 16 were tried, on two cores that
# were not idle: 8 and 16 hardly differ, more is worse.
SERVERS = {
    "ours": Server("metrics-ingest", (*FRAMEWORK, "functions/{function}/main.py"), {"ALLOW_ANONYMOUS": "true"}, "ours"),
    "ours-otlp": Server(
        "metrics-ingest, OpenTelemetry",
        (*FRAMEWORK[:-2], "ingest_otlp", "--source", "functions/ingest_otlp/main.py"),
        {"ALLOW_ANONYMOUS": "true"},
        "ours",
    ),
    "fastapi": Server("FastAPI + asyncpg", FASTAPI, {"POOL": "8"}),
    "fastapi-tx": Server("FastAPI + asyncpg, BEGIN … COMMIT", FASTAPI, {"POOL": "8", "TRANSACTION": "1"}),
    "flask": Server("Flask + psycopg 3, gunicorn threads", FLASK, {"POOL": "16"}),
    "fastify-postgres": Server("Fastify + postgres.js", ("node", f"{HERE}/node/server.js", "postgres"), {"POOL": "16"}),
    "fastify-pg": Server("Fastify + pg", ("node", f"{HERE}/node/server.js", "pg"), {"POOL": "8"}),
    "bun": Server("Elysia on Bun + Bun.sql", (BUN, f"{HERE}/bun/server.js"), {"POOL": "16"}),
    "sync": Server("metrics-ingest as sync functions", (*FRAMEWORK, f"{HERE}/sync_function.py"), {"THREADS": "16"}),
    "empty": Server("empty async function (ceiling)", (*FRAMEWORK, f"{HERE}/empty_function.py"), {}, None),
    **{
        f"ours-py{python}": Server(
            f"metrics-ingest on Python {python}",
            (
                f"{ROOT}/.local/bench-python{python}/bin/functions-framework",
                *FRAMEWORK[1:],
                "functions/{function}/main.py",
            ),
            {"ALLOW_ANONYMOUS": "true"},
            "ours",
        )
        for python in PYTHONS
    },
}


class Process:
    """One server, running. `connections` and `memory` are the most that was seen."""

    def __init__(self, popen: subprocess.Popen[bytes], port: int, path: str, start_ms: float) -> None:
        self.pid = popen.pid
        self.port = port
        self.path = path
        self.start_ms = start_ms
        self.connections = 0
        self.memory = 0


@contextmanager
def start(name: str, function: str, postgres: Postgres, database: str | None = None) -> Iterator[Process]:
    """Start a server (NAME or NAME-wN for N processes), wait for its first 200, and stop it in the end."""
    name, _, workers = name.partition("-w")
    server = SERVERS[name]
    database = database or server.database
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fill = {"port": port, "function": function, "workers": workers or "1"}
    environment = {
        "PATH": os.environ["PATH"], "PORT": str(port), "WORKERS": fill["workers"], "NODE_ENV": "production",
        **(postgres.environment(database) if database else {}), **server.environment,
    }  # fmt: skip
    with (postgres.directory / f"{name}.log").open("ab") as log:
        begun = time.perf_counter()
        popen = subprocess.Popen(
            [part.format(**fill) for part in server.command],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    path = otlp.PATH if name == "ours-otlp" else f"/{function}/"

    def answers() -> bool:
        if path == otlp.PATH:
            return otlp.post(port, otlp.request(postgres.user_ids[0])) == (200, b"")
        body = _metric(postgres)
        return post(port, path, [body] if function == "ingest_batch" else body) == 200

    try:
        while not answers():
            if popen.poll() is not None or time.perf_counter() - begun > 30:
                raise SystemExit(f"{name} did not start; see {log.name}")
            time.sleep(0.002)  # the start is measured to this; without it the poll would take the processor from it
        process = Process(popen, port, path, 1000 * (time.perf_counter() - begun))
        ended = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process, postgres, database, ended))
        sampler.start()
        try:
            yield process
        finally:
            ended.set()
            sampler.join()
    finally:
        stop(popen)


def stop(popen: subprocess.Popen[bytes]) -> None:
    """End a server and its processes."""
    tree = family(popen.pid)
    popen.terminate()
    _, alive = psutil.wait_procs(tree, timeout=5)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    popen.wait()


def family(pid: int) -> list[psutil.Process]:
    """A process and its descendants."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its descendants; those that have ended are in their parent's account."""
    total = 0.0
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def cpu_times(pid: int | None, postgres: Postgres) -> tuple[float, ...]:
    """CPU seconds so far: of the server with this id, of PostgreSQL, of the load generator and of the whole machine."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)  # of children that have ended: in a run, only wrk or pgbench
    machine_times = psutil.cpu_times()
    busy = sum(machine_times[:8]) - machine_times.idle - machine_times.iowait
    server = cpu_seconds(pid) if pid else 0.0
    return server, cpu_seconds(postgres.pid), usage.ru_utime + usage.ru_stime, busy


def _memory(pid: int) -> int:
    """Bytes, with what processes share counted once."""
    total = 0
    for process in family(pid):
        with suppress(OSError, psutil.NoSuchProcess, IndexError):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            total += int(rollup.partition("\nPss:")[2].split()[0]) * 1024
    return total


def _sample(process: Process, postgres: Postgres, database: str | None, ended: threading.Event) -> None:
    connection = postgres.connect()
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = :name AND backend_type = 'client backend'"
    while not ended.wait(SAMPLE_S):
        process.memory = max(process.memory, _memory(process.pid))
        process.connections = max(process.connections, connection.run(sql, name=database)[0][0])
    connection.close()


def _metric(postgres: Postgres) -> dict[str, object]:
    timestamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"user_id": postgres.user_ids[0], "metric_type": "talked_time", "value": 1.5, "timestamp": timestamp}


def post(port: int, path: str, body: object) -> int:
    """The status, or 0 when nobody answers yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def check_validation(process: Process, postgres: Postgres) -> None:
    """Nobody is faster by checking less: each of these must be refused."""
    if process.path == otlp.PATH:
        otlp.check_validation(process.port, postgres.user_ids[0])
        return
    now = datetime.now(UTC)
    for wrong in (
        {"user_id": "00000000-0000-4000-8000-000000000001"},
        {"user_id": "not a UUID"},
        {"metric_type": "not_registered"},
        {"metric_type": "Not a name"},
        {"value": "1.5"},
        {"value": None},
        {"value": float("nan")},
        {"timestamp": now.replace(tzinfo=None).isoformat()},
        {"timestamp": now.timestamp()},
        {"timestamp": "1999-12-31T23:59:59Z"},
        {"timestamp": (now + timedelta(days=2)).isoformat()},
        {"session_id": "x"},
        {"metric_id": "x"},
        {"other": 1},
    ):
        body: object = {**_metric(postgres), **wrong}
        status = post(process.port, process.path, [body] if process.path == "/ingest_batch/" else body)
        assert status >= 400, f"{wrong} was answered with {status}"  # FastAPI's own answer to NaN is a 500
