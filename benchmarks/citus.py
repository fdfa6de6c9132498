"""One plain PostgreSQL and a Citus cluster, side by side: rates, and the CPU time of each node for a metric.

Both exist already, on this machine, with all their nodes. THEIR DATABASES ARE EMPTIED, migrated and distributed. The
result is what `python -m benchmarks.capacity` computes from.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from pg8000.native import Connection

from benchmarks.servers import FRAMEWORK, ROOT, cpu_seconds, post, stop
from metrics_ingest.settings import read_database
from metrics_ingest.storage import migrations
from metrics_ingest.storage.driver import connect

# name: (function, connections, metrics in a request or 0)
LOADS = {"singles": ("ingest", 64, 0), "batches": ("ingest_batch", 8, 1000)}
PORT = 18_200
CHILD = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"  # of the server: it lives as long
NODES = f"""
    SELECT CASE WHEN groupid = 0 THEN 'coordinator' ELSE 'workers' END, result
    FROM run_command_on_all_nodes($${CHILD}$$) JOIN pg_dist_node USING (nodeid)
"""  # made of constants of this module only
WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), :since)"
DISK = """
    SELECT sum(pg_total_relation_size(relid)) / (SELECT count(*) FROM metrics)
    FROM pg_partition_tree('metrics') WHERE isleaf
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.citus", description=__doc__)
    parser.add_argument("--plain", required=True, metavar="URL", help="of a database on one PostgreSQL")
    parser.add_argument("--citus", required=True, metavar="URL", help="of a database on a coordinator")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--loads", default=",".join(LOADS), help="of %(default)s")
    parser.add_argument("--out", type=Path, metavar="JSON", default=ROOT / "benchmarks/results/citus.json")
    return parser.parse_args()


def opened(url: str) -> Connection:
    return connect(read_database({"DATABASE_URL": url}), None)


def prepare(url: str, users: list[str]) -> dict[str, list[int]]:
    """Migrate, register the users, and return the process ids of the servers by what they are."""
    migrations.migrate(read_database({"DATABASE_URL": url}))
    connection = opened(url)
    on_citus = bool(connection.run("SELECT 1 FROM pg_extension WHERE extname = 'citus'"))
    if on_citus:
        command = [Path(sys.executable).parent / "metrics-ingest", "citus", "distribute"]
        subprocess.run(command, env={**os.environ, "DATABASE_URL": url}, check=True, stdout=subprocess.DEVNULL)
    batch = json.dumps([{"user_id": user, "name": "user"} for user in users])
    connection.run("SELECT register_users(CAST(:batch AS json))", batch=batch)
    rows = connection.run(NODES) if on_citus else connection.run(CHILD.replace("pid", "'plain', pid", 1))
    servers: dict[str, list[int]] = {}
    for name, pid in rows:
        postmaster = psutil.Process(int(pid)).parent()
        assert postmaster
        servers.setdefault(name, []).append(postmaster.pid)
    connection.close()
    return servers


@contextmanager
def function(name: str, url: str, user: str) -> Iterator[tuple[int, str]]:
    """Serve one function; yield its process id and its path when it answers."""
    path = f"/{name}/"
    popen = subprocess.Popen(
        [*(part.format(port=PORT, function=name) for part in FRAMEWORK), f"functions/{name}/main.py"],
        cwd=ROOT, env={**os.environ, "DATABASE_URL": url, "ALLOW_ANONYMOUS": "true", "WORKERS": "1"},
        start_new_session=True,
    )  # fmt: skip
    try:
        now = datetime.now(UTC).isoformat()
        body = {"user_id": user, "metric_type": "talked_time", "value": 1, "timestamp": now}
        deadline = time.monotonic() + 30
        while post(PORT, path, [body] if name == "ingest_batch" else body) != 200:
            assert popen.poll() is None, f"{name} did not start"
            assert time.monotonic() < deadline, f"{name} refuses a metric"
            time.sleep(0.1)  # it cannot say when it listens: a poll, which takes no processor time from its start
        yield popen.pid, path
    finally:
        stop(popen)


def measure(url: str, servers: dict[str, list[int]], load: str, seconds: int, users: list[str]) -> dict[str, float]:
    """Rate, and CPU in microseconds a metric, of the function process and of each kind of server."""
    name, connections, size = LOADS[load]
    connection = opened(url)
    connection.run("TRUNCATE users CASCADE")
    batch = json.dumps([{"user_id": user, "name": "user"} for user in users])
    connection.run("SELECT register_users(CAST(:batch AS json))", batch=batch)
    with tempfile.NamedTemporaryFile("w") as file, function(name, url, users[0]) as (pid, path):
        file.write("\n".join(users) + "\n")
        file.flush()

        def wrk(duration: int) -> dict[str, Any]:
            target = [f"http://127.0.0.1:{PORT}", "--", file.name, path, str(size)]
            options = f"-t1 -c{connections} -d{duration}s --timeout 30s -s benchmarks/load.lua".split()
            command = ["wrk", *options, *target]
            output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
            return dict(json.loads(output.splitlines()[-1]))

        wrk(2)
        processes = {"function": [pid], **servers}

        def used() -> dict[str, float]:
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)  # of wrk, as long as the others run
            return {"load": usage.ru_utime + usage.ru_stime} | {
                what: sum(map(cpu_seconds, pids)) for what, pids in processes.items()
            }

        before, written = used(), connection.run("SELECT pg_current_wal_lsn()")[0][0]
        result = wrk(seconds)
        after = used()
    metrics = (result["requests"] - result["refused"]) * (size or 1)
    assert result["refused"] == result["lost"] == 0, result
    found = {f"{what}_us": 1e6 * (after[what] - before[what]) / metrics for what in after}
    if "plain" in servers:
        ((wal_bytes,),) = connection.run(WAL, since=written)
        ((disk_bytes,),) = connection.run(DISK)
        found |= {"wal_bytes": float(wal_bytes) / metrics, "disk_bytes": float(disk_bytes)}
    connection.close()
    return {"metrics_per_s": metrics / result["seconds"], **found}


def main() -> None:
    options = arguments()
    users = [str(uuid.uuid5(uuid.NAMESPACE_OID, f"user {number}")) for number in range(options.users)]
    urls = {"plain": options.plain, "citus": options.citus}
    servers = {name: prepare(url, users) for name, url in urls.items()}
    results: dict[str, dict[str, dict[str, float]]] = {}
    for load in options.loads.split(","):
        runs: dict[str, list[dict[str, float]]] = {"plain": [], "citus": []}
        for _ in range(options.rounds):
            for name, url in urls.items():
                runs[name].append(measure(url, servers[name], load, options.seconds, users))
        for name, found in runs.items():
            medians = {key: statistics.median(run[key] for run in found) for key in found[0]}
            results.setdefault(load, {})[name] = {key: round(value, 2) for key, value in medians.items()}
            print(load, name, *(f"{key}={value:,.1f}" for key, value in medians.items()), flush=True)
    nodes = {name: {kind: len(pids) for kind, pids in found.items()} for name, found in servers.items()}
    options.out.write_text(json.dumps({"cores": os.cpu_count(), "nodes": nodes, "loads": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
