"""The runs as tables: the median of each server's rounds, the spread between them, and how they compare with ours."""

import json
import os
import platform
import re
import statistics
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chart import Bar, Panel
from benchmarks.database import Postgres
from benchmarks.loads import LOADS
from benchmarks.servers import HERE, PEERS, ROOT, SERVERS

TITLES = {
    **{name: load.title for name, load in LOADS.items()},
    "start": "From the start of the process to its first 200",
    "growth-single": "Growth: one metric a request, 64 connections",
    "growth-batch": "Growth: 1,000 metrics a request, 4 connections",
}
DIRECT = {
    "copy": "COPY of prepared text by psql (reference)",
    "copy-2": "COPY by two psql at once (reference)",
    "pgbench": "pgbench straight into the table (reference)",
}
# What the chart and the short table have: (workload, figure, unit).
PICTURE = (
    ("single", "requests_per_s", "requests/s"),
    ("eight", "requests_per_s", "requests/s"),
    ("lone", "p50_ms", "p50 ms, less is better"),
    ("tens", "rows_per_s", "metrics/s"),
    ("batch", "rows_per_s", "metrics/s"),
    ("retry", "rows_per_s", "metrics/s"),
    ("start", "start_ms", "ms, less is better"),
)
PICTURED = {
    "ours": "metrics-ingest", "bun": "Elysia on Bun", "fastify-postgres": "Fastify + postgres.js",
    "fastapi": "FastAPI + asyncpg", "pgbench": "pgbench (reference)", "copy": "COPY by psql (reference)",
}  # fmt: skip
COLUMNS = (
    ("requests_per_s", "requests/s", "{:,.0f}"),
    ("p50_ms", "p50 ms", "{:.2f}"),
    ("p99_ms", "p99 ms", "{:.2f}"),
    ("rows_per_s", "rows/s", "{:,.0f}"),
    ("server_us", "server CPU µs/metric", "{:.1f}"),
    ("postgres_us", "PostgreSQL CPU µs/metric", "{:.1f}"),
    ("load_us", "client CPU µs/metric", "{:.1f}"),
    ("memory_mib", "memory MiB", "{:.0f}"),
    ("connections", "database connections", "{:.0f}"),
    ("errors", "errors", "{:.0f}"),
    ("others", "cores busy elsewhere", "{:.2f}"),
    ("start_ms", "ms", "{:.0f}"),
)
# What is aimed at: (title, workload, figure, of, against, at least or at most, bound); against None: the figure itself;
# against workload/name: a figure of another workload.
TARGETS = (
    ("single, requests/s against FastAPI", "single", "requests_per_s", "ours", "fastapi", ">=", 4.0),
    ("single, requests/s against FastAPI, transactions", "single", "requests_per_s", "ours", "fastapi-tx", ">=", 4.0),
    ("single, p99 against FastAPI", "single", "p99_ms", "ours", "fastapi", "<=", 1.0),
    ("single, requests/s against postgres.js", "single", "requests_per_s", "ours", "fastify-postgres", ">=", 1.0),
    ("single, requests/s against the empty function", "single", "requests_per_s", "ours", "empty", ">=", 0.6),
    ("single, requests/s against Bun", "single", "requests_per_s", "ours", "bun", ">=", 1.5),
    ("single, requests/s against pgbench", "single", "requests_per_s", "ours", "pgbench", ">=", 1.0),
    ("single, CPU µs a metric of server and PostgreSQL", "single", "cpu_us", "ours", None, "<=", 90),
    ("8 connections, p50 against Bun", "eight", "p50_ms", "ours", "bun", "<=", 0.8),
    ("8 connections, requests/s against Bun", "eight", "requests_per_s", "ours", "bun", ">=", 1.3),
    ("1 connection, p50 against postgres.js", "lone", "p50_ms", "ours", "fastify-postgres", "<=", 1.0),
    ("1 connection, p50 against Bun", "lone", "p50_ms", "ours", "bun", "<=", 1.0),
    ("1 connection, p50 against FastAPI", "lone", "p50_ms", "ours", "fastapi", "<=", 0.6),
    ("1 connection, p50 against FastAPI, transactions", "lone", "p50_ms", "ours", "fastapi-tx", "<=", 0.6),
    ("batch, rows/s against FastAPI", "batch", "rows_per_s", "ours", "fastapi", ">=", 3.0),
    ("batch, rows/s against COPY", "batch", "rows_per_s", "ours", "copy", ">=", 1.0),
    ("batch, two processes against two COPY", "batch", "rows_per_s", "ours-w2", "copy-2", ">=", 0.6),
    ("batches of 10, rows/s against Bun", "tens", "rows_per_s", "ours", "bun", ">=", 2.0),
    ("duplicates only, rows/s against new ones", "retry", "rows_per_s", "ours", "batch/ours", ">=", 0.7),
    ("OpenTelemetry in protobuf, rows/s against batch", "batch", "rows_per_s", "ours-otlp", "ours", ">=", 0.7),
    ("start against FastAPI", "start", "start_ms", "ours", "fastapi", "<=", 1.0),
    ("start against postgres.js", "start", "start_ms", "ours", "fastify-postgres", "<=", 1.0),
    ("1,000 connections, errors", "crowd", "errors", "ours", None, "<=", 0),
    ("1,000 connections, database connections", "crowd", "connections", "ours", None, "<=", 2),
    ("20 million stored against none, requests/s", "growth-single", "requests_per_s",
     "ours, 20 million stored", "ours, 0 million stored", ">=", 0.9),
    ("20 million stored against none, rows/s", "growth-batch", "rows_per_s",
     "ours, 20 million stored", "ours, 0 million stored", ">=", 0.9),
)  # fmt: skip
PYTHON_PEERS = ("fastapi", "uvicorn", "asyncpg", "Flask", "psycopg")
BUN_PEERS = ("bun", "elysia")
NODE_PEERS = ("fastify", "postgres", "pg")
BATCHES = ("tens", "batch", "retry", "growth-batch")
KINDS = {"ours": "ours", "pgbench": "reference", "copy": "reference"}
Document = dict[str, Any]


def machine(postgres: Postgres) -> dict[str, str]:
    """What it was measured on and with."""
    processor = re.search(r"^model name\s*: (.*)", _read("/proc/cpuinfo"), re.MULTILINE)
    packages = ("functions-framework", "gunicorn", "pg8000", "pydantic", "uvicorn", "uvloop")
    facts = {
        "processor": f"{os.cpu_count()} cores, {processor[1] if processor else platform.machine()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "postgresql": str(postgres.run("SHOW server_version")[0][0]),
        "ours": ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "wrk": " ".join(_output("wrk", "--version").split()[:2]),
        "node": _output("node", "--version"),
    }
    frozen = dict(
        line.split("==") for line in _output(f"{PEERS}/python", "-m", "pip", "freeze").split() if "==" in line
    )
    facts["python peers"] = ", ".join(f"{name} {frozen.get(name, 'missing')}" for name in PYTHON_PEERS)
    for folder, names in (("node", NODE_PEERS), ("bun", BUN_PEERS)):
        lock = json.loads((ROOT / HERE / folder / "package-lock.json").read_text())["packages"]
        facts[f"{folder} peers"] = ", ".join(f"{name} {lock[f'node_modules/{name}']['version']}" for name in names)
    return facts


def _output(*command: str) -> str:
    try:  # wrk --version exits with 1
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return "none"


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def _runs(document: Document, workload: str, name: str) -> list[dict[str, Any]]:
    return [run for run in document["runs"] if (run["workload"], run["name"]) == (workload, name)]


def figure(document: Document, workload: str, name: str, key: str) -> float | None:
    """The median over the rounds; of errors and connections the most."""
    values = [run[key] for run in _runs(document, workload, name) if run.get(key) is not None]
    if not values:
        return None
    return float(max(values) if key in ("errors", "connections") else statistics.median(values))


def render(document: Document) -> str:
    """All of it as Markdown."""
    lines = [f"Measured {document['when']} in {document['minutes']} minutes; {document['options']}.", ""]
    lines += [f"- {name}: {fact}" for name, fact in document["machine"].items()]
    lines += [f"- skipped: {name}, {reason}" for name, reason in document["skipped"].items()]
    lines += ["", "### In short", "", *_short_table(document)]
    for workload, title in TITLES.items():
        names = list(dict.fromkeys(run["name"] for run in document["runs"] if run["workload"] == workload))
        if names:
            lines += ["", f"### {title}", "", *_table(document, workload, names)]
    targets = [row for row in (_target(document, *target) for target in TARGETS) if row]
    if targets:
        lines += ["", "### Targets", "", "| work | measured | target | |", "|---|---:|---:|---|", *targets]
    return "\n".join(lines)


def panels(document: Document) -> list[Panel]:
    """What was measured of the PICTURE."""
    found = []
    for workload, key, unit in PICTURE:
        form = next(form for column, _, form in COLUMNS if column == key)
        values = {name: figure(document, workload, name, key) for name in PICTURED}
        bars = tuple(
            Bar(PICTURED[name], value, form.format(value), KINDS.get(name, "bar"))
            for name, value in values.items() if value is not None
        )  # fmt: skip
        if bars:
            found.append(Panel(f"{TITLES[workload]}: {unit}", bars))
    return found


def _short_table(document: Document) -> list[str]:
    drawn = panels(document)
    present = [name for name in PICTURED.values() if any(name == bar.name for panel in drawn for bar in panel.bars)]
    rows = [f"|  | {' | '.join(present)} |", "|---" + "|---:" * len(present) + "|"]
    for panel in drawn:
        cells = {bar.name: bar.text for bar in panel.bars}
        rows.append(f"| {panel.title} | {' | '.join(cells.get(name, '') for name in present)} |")
    return rows


def _table(document: Document, workload: str, names: list[str]) -> list[str]:
    present = {key for name in names for run in _runs(document, workload, name) for key in run if run[key] is not None}
    shown = [column for column in COLUMNS if column[0] in present]
    rate = "start_ms" if workload == "start" else "rows_per_s" if workload in BATCHES else "requests_per_s"
    compared = f"{_title(names[0])} {'takes' if rate == 'start_ms' else 'is'}"
    header = ["", *(title for _, title, _ in shown), "rounds, lowest to highest", compared]
    rows = [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"]
    for name in names:
        values = [figure(document, workload, name, key) for key, _, _ in shown]
        cells = ["" if v is None else form.format(v) for v, (_, _, form) in zip(values, shown, strict=True)]
        runs = [run[rate] for run in _runs(document, workload, name)]
        cells.append(f"{min(runs):,.0f} to {max(runs):,.0f}")
        first, own = figure(document, workload, names[0], rate), figure(document, workload, name, rate)
        cells.append(f"{first / own:.2f} x" if first and own else "")
        rows.append(f"| {_title(name)} | {' | '.join(cells)} |")
    return rows


def _title(name: str) -> str:
    base, _, workers = name.partition("-w")
    title = DIRECT.get(name) or (SERVERS[base].title if base in SERVERS else base)
    return f"{title}, {workers} processes" if workers else title


def _target(
    document: Document, title: str, workload: str, key: str, name: str, against: str | None, relation: str, bound: float
) -> str:
    measured = figure(document, workload, name, key)
    other, _, peer = (against or "").rpartition("/")
    base = figure(document, other or workload, peer, key) if against else 1.0
    if measured is None or not base:
        return ""
    ratio = measured / base
    met = ratio >= bound if relation == ">=" else ratio <= bound
    unit = " x" if against else ""
    words = "at least" if relation == ">=" else "at most"
    return f"| {title} | {ratio:.3g}{unit} | {words} {bound:g}{unit} | {'reached' if met else 'NOT reached'} |"
