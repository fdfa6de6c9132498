"""Measures the figures of docs/data-model.md: `python tools/measure.py drain|refresh|load|index ROWS`.

Each measurement starts its own PostgreSQL (fsync on) and, where it needs them, the functions as processes.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import requests

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.processes import BIN, Postgres, function, query

SEED = """
    INSERT INTO users (user_id, name) SELECT md5('u' || i)::uuid, 'user ' || i FROM generate_series(1, {users}) i;
    INSERT INTO sessions (user_id, session_id, start_time)
    SELECT md5('u' || i)::uuid, md5('s' || i || ' ' || j)::uuid, '2026-10-01'
    FROM generate_series(1, {users}) i, generate_series(1, {sessions}) j
"""
# Row n: users, sessions and the four metric types in turn, at times spread evenly over the span.
METRICS = """
    INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value, received_at)
    SELECT md5('u' || (1 + n / {per_session} / {sessions} % {users}))::uuid,
           timestamptz '{start}' + interval '{span}' * (n::float8 / {rows}),
           gen_random_uuid(),
           md5('s' || (1 + n / {per_session} / {sessions} % {users}) || ' '
               || (1 + n / {per_session} % {sessions}))::uuid,
           (ARRAY['talked_time', 'microphone_used', 'speaker_used', 'voice_sentiment'])[1 + n % 4],
           CASE n % 4 WHEN 0 THEN n % 60 WHEN 3 THEN 0.5 ELSE n % 2 END, {received}
    FROM generate_series(0, {rows} - 1) n
"""


def drain(rows: int) -> None:
    """Measure `partitions maintain` on a default with rows of four past months, while 16 clients send single metrics.

    One request in four goes to those months.
    """
    server = Postgres(fsync="on")
    url = server.clone()
    query(url, SEED.format(users=1000, sessions=5))
    months = [f"2024-{month:02}-01" for month in (1, 2, 3, 4)]
    for start in months:
        shape = {"rows": rows // 4, "users": 1000, "sessions": 5, "per_session": 10}
        query(url, METRICS.format(start=start, span="28 days", received="now()", **shape))
    requests_made: list[tuple[float, float]] = []  # start and duration in seconds
    stop = threading.Event()
    with function("ingest", url) as ingest:

        def send(number: int) -> None:
            session = requests.Session()
            n = 0
            user = query(url, "SELECT user_id::text FROM users OFFSET :n LIMIT 1", n=number)[0][0]
            while not stop.is_set():
                n += 1
                timestamp = (
                    f"{months[n // 4 % 4][:7]}-15T00:00:00Z"
                    if n % 4 == 0
                    else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                )
                metric = {
                    "user_id": user,
                    "metric_type": "talked_time",
                    "value": 1,
                    "timestamp": timestamp,
                    "metric_id": str(uuid4()),
                }
                began = time.perf_counter()
                answer = session.post(f"{ingest.url}/ingest/", json=metric, timeout=30)
                requests_made.append((began, time.perf_counter() - began))
                assert answer.status_code == 200, answer.text

        threads = [threading.Thread(target=send, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        time.sleep(3)
        began = time.perf_counter()
        out = cli(url, "partitions", "maintain", "--yes", "--json")
        ended = time.perf_counter()
        time.sleep(2)
        stop.set()
        for thread in threads:
            thread.join()
    before = [duration for start, duration in requests_made if start + duration < began]
    during = [duration for start, duration in requests_made if start + duration >= began and start <= ended]
    print(out.strip())
    print(f"drain: {rows:,} rows in {ended - began:.2f} s; {len(requests_made):,} requests meanwhile, all 200")
    print(
        f"longest request before {max(before) * 1000:.0f} ms (median {statistics.median(before) * 1000:.0f}), "
        f"during {max(during) * 1000:.0f} ms (median {statistics.median(during) * 1000:.0f})"
    )
    ((total,), (left,)) = query(url, "SELECT count(*) FROM metrics UNION ALL SELECT count(*) FROM metrics_default")
    print(f"stored {total:,} of {rows + len(requests_made):,}; {left} left in the default")
    server.close()


def refresh(rows: int) -> None:
    """Measure `summaries refresh` of `rows` metrics of 60 days, then of 100,000 late ones: of the last days, of all."""
    server = Postgres(fsync="on", max_wal_size="4GB")
    url = server.clone()
    shape = {"users": 10_000, "sessions": 10, "per_session": 10}
    query_long(url, SEED.format(**shape))
    query_long(url, "SELECT create_metrics_partitions(1)")
    old = METRICS.format(rows=rows, start="2026-09-20", span="60 days", received="now() - interval '1 day'", **shape)
    query_long(url, old)
    cli(url, "partitions", "maintain", "--yes")
    query_long(url, "VACUUM ANALYZE metrics")
    for index in query(url, "SELECT indexrelid FROM pg_index WHERE indexrelid::regclass::text LIKE '%received_at%'"):
        query(url, f"SELECT brin_summarize_new_values({index[0]})")
    timed(f"first refresh, {rows:,} rows", url)
    timed("nothing new", url)
    # A late row has a time within its session, as the metrics that an offline device sends later.
    for name, step, first in (("the last days", 1, rows - 100_000), ("all 60 days", rows // 100_000, 0)):
        late = METRICS.format(rows=rows, start="2026-09-20", span="60 days", received="now()", **shape)
        query_long(
            url, late.replace(f"generate_series(0, {rows} - 1)", f"generate_series({first}, {rows} - 1, {step})")
        )
        timed(f"100,000 late rows over {name}", url)
    server.close()


def timed(what: str, url: str) -> None:
    """Print how long a refresh takes, the start of the command included."""
    began = time.perf_counter()
    out = cli(url, "summaries", "refresh", "--json").strip()
    print(f"{what}: {time.perf_counter() - began:.2f} s {out}", flush=True)


def load(rows: int) -> None:
    """Measure `load` and `export` of `rows` metrics: rate, and the peak memory of the command."""
    server = Postgres(fsync="on", max_wal_size="4GB")
    url = server.clone()
    query_long(url, SEED.format(users=1000, sessions=10))
    users = [row[0] for row in query(url, "SELECT user_id::text FROM users")]
    with tempfile.TemporaryDirectory() as directory, function("ingest_batch", url) as batch:
        path = Path(directory) / "metrics.ndjson"
        with path.open("w") as file:
            for n in range(rows):
                file.write(
                    json.dumps(
                        {
                            "user_id": users[n % 1000],
                            "metric_type": "talked_time",
                            "value": n % 60,
                            "timestamp": f"2026-11-{1 + n // 1000 % 22:02}T{n // 22000 % 24:02}:{n % 60:02}:00Z",
                        }
                    )
                    + "\n"
                )
        for what in ("load", "load again"):
            began = time.perf_counter()
            out, peak = run_with_peak(url, "load", str(path), "--url", f"{batch.url}/ingest_batch/", "--json")
            took = time.perf_counter() - began
            print(
                f"{what}: {rows / took:,.0f} metrics/s ({took:.1f} s), peak memory {peak} MB; {out.strip()}", flush=True
            )
        began = time.perf_counter()
        _, peak = run_with_peak(url, "export", "-o", "/dev/null")
        print(f"export: {rows / (time.perf_counter() - began):,.0f} metrics/s, peak memory {peak} MB")
        print(f"the file has {path.stat().st_size / 1e6:.0f} MB")
    server.close()


def run_with_peak(url: str, *arguments: str) -> tuple[str, int]:
    """Run a command; return its output and its peak memory in MB, polled, because getrusage includes the parent's."""
    with tempfile.TemporaryFile() as out:
        command = [str(BIN / "metrics-ingest"), *arguments]
        process = subprocess.Popen(command, env=environment(url), stdout=out, stderr=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
            peak = max(peak, int(found[1]) if found else 0)
            time.sleep(0.02)
        assert process.returncode == 0
        out.seek(0)
        return out.read().decode(), peak // 1024


def index(rows: int) -> None:
    """Measure inserts with different indexes on received_at: none, BRIN as migrated, BRIN of one column, a B-tree."""
    server = Postgres(fsync="on", max_wal_size="4GB")
    shape = {"users": 1000, "sessions": 10, "per_session": 10, "rows": 20_000}
    choices = {
        "brin": "SELECT",
        "plain brin": "DROP INDEX metrics_received_brin; CREATE INDEX ON metrics USING brin (received_at)",
        "none": "DROP INDEX metrics_received_brin",
        "btree": "DROP INDEX metrics_received_brin; CREATE INDEX ON metrics (received_at)",
    }
    took: dict[str, list[float]] = {name: [] for name in choices}
    urls = {}
    for name, sql in choices.items():
        urls[name] = server.clone()
        query_long(urls[name], SEED.format(**shape))
        query_long(urls[name], sql)
    for number in range(rows // 20_000):
        for name, url in urls.items():
            sql = METRICS.format(start=f"2026-11-01T00:{number % 60:02}:00Z", span="1 hour", received="now()", **shape)
            began = time.perf_counter()
            query_long(url, sql)
            took[name].append(time.perf_counter() - began)
    for name, times in took.items():
        print(f"{name}: {20_000 / statistics.median(times):,.0f} rows/s (median of {len(times)} inserts of 20,000)")
    server.close()


def query_long(url: str, sql: str) -> list[Any]:
    """Run a statement without the timeout of the tests' `query`."""
    from metrics_ingest.settings import read_database
    from metrics_ingest.storage.driver import connect

    connection = connect(read_database({"DATABASE_URL": url}), None)
    try:
        return connection.run(sql) or []
    finally:
        connection.close()


def environment(url: str) -> dict[str, str]:
    """Return this process's environment with another DATABASE_URL."""
    return {**os.environ, "DATABASE_URL": url}


def cli(url: str, *arguments: str) -> str:
    """Run `metrics-ingest`; return its output."""
    done = subprocess.run(
        [BIN / "metrics-ingest", *arguments], env=environment(url), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


if __name__ == "__main__":
    measurements = {"drain": drain, "refresh": refresh, "load": load, "index": index}
    if len(sys.argv) != 3 or sys.argv[1] not in measurements or not sys.argv[2].replace("_", "").isdigit():
        sys.exit("usage: python tools/measure.py drain|refresh|load|index ROWS")
    measurements[sys.argv[1]](int(sys.argv[2].replace("_", "")))
