"""Measure the dashboard's API on 5 million metrics of 10,000 users over 90 days, with summaries refreshed.

    .venv/bin/python tools/dashboard.py [--metrics 5000000] [--rounds 60]

Starts an embedded PostgreSQL with its default settings and the function `dashboard`, fills the tables by SQL, and
prints the median and the 95th percentile of the time that a request takes over HTTP on loopback, warm.
"""

import argparse
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import requests

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from metrics_ingest.dashboard.api import KEEP_S
from support.processes import Postgres, function, query

DAYS = 90
USERS = 10_000
METRICS_A_SESSION = 16
FILL = (
    "SET session_replication_role = replica",  # without the foreign key checks, which cost two thirds of the time
    "SELECT setseed(0.5)",
    "INSERT INTO users (user_id, name) SELECT md5('u' || n)::uuid, 'User ' || n FROM generate_series(1, :users) n",
    """
    INSERT INTO sessions (user_id, session_id, start_time)
    SELECT md5('u' || (1 + floor(random() * :users)::int))::uuid, md5('s' || n)::uuid,
           date_trunc('hour', now()) - interval '90 days' + n * interval '89.9 days' / :sessions
    FROM generate_series(1, :sessions) n
    """,
    """
    INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value, received_at)
    SELECT user_id, at, gen_random_uuid(), session_id, kind,
           CASE kind WHEN 'talked_time' THEN random() * 30 WHEN 'voice_sentiment' THEN random() * 2 - 1
                ELSE round(random()) END,
           at + random() * interval '10 seconds'
    FROM (SELECT *, start_time + n * interval '20 seconds' AS at,
                 (ARRAY['talked_time', 'microphone_used', 'speaker_used', 'voice_sentiment'])[1 + n % 4] AS kind
          FROM sessions, generate_series(0, 15) n) AS metric
    ORDER BY at
    """,
)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--metrics", type=int, default=5_000_000)
    arguments.add_argument("--rounds", type=int, default=60)
    options = arguments.parse_args()
    postgres = Postgres()
    try:
        url = postgres.clone()
        fill(url, options.metrics)
        with function("dashboard", url) as server:
            measure(f"{server.url}/dashboard/api", options.rounds, url)
    finally:
        postgres.close()


def fill(url: str, metrics: int) -> None:
    """Store the metrics and refresh the summaries."""
    import pg8000.native

    from metrics_ingest.settings import read_database
    from metrics_ingest.storage.driver import connect

    connection: pg8000.native.Connection = connect(read_database({"DATABASE_URL": url}), 3_600)
    month = (datetime.now(UTC) - timedelta(days=DAYS + 1)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    while month <= datetime.now(UTC):
        following = (month + timedelta(days=32)).replace(day=1)
        name = f"metrics_p{month:%Y_%m}"
        if not connection.run("SELECT to_regclass(:name)::text", name=name)[0][0]:
            connection.run(f"CREATE TABLE {name} PARTITION OF metrics FOR VALUES FROM ('{month}') TO ('{following}')")
        month = following
    began = time.monotonic()
    for sql in FILL:
        text = sql.replace(":users", str(USERS)).replace(":sessions", str(metrics // METRICS_A_SESSION))
        connection.run(text)
    print(f"filled in {time.monotonic() - began:.0f} s", flush=True)
    connection.run("VACUUM ANALYZE")
    began = time.monotonic()
    print(connection.run("SELECT refresh_summaries()")[0][0], f"in {time.monotonic() - began:.0f} s", flush=True)
    connection.run("VACUUM ANALYZE")
    connection.close()


def measure(base: str, rounds: int, url: str) -> None:
    """Print how long each request takes. Ranges come back after 12 requests, as they do to a live page."""
    sizes = query(url, "SELECT relname, n_live_tup FROM pg_stat_user_tables WHERE n_live_tup > 1000 ORDER BY 1")
    print(", ".join(f"{name} {count:,}" for name, count in sizes), flush=True)
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    user = query(url, "SELECT user_id, session_id FROM sessions LIMIT 1")[0]
    cases: dict[str, tuple[str, dict[str, str], int | None, int]] = {
        f"overview {days} d": ("overview", {}, days, 1) for days in (1, 7, 30, 89)
    } | {
        "overview, midnights": ("overview", {}, 30, 24),
        "series hour 7 d": ("series", {"metric_type": "voice_sentiment"}, 7, 1),
        "series hour 89 d": ("series", {"metric_type": "voice_sentiment"}, 89, 1),
        "series day 89 d": ("series", {"metric_type": "talked_time", "step": "day"}, 89, 1),
        "activity hour 7 d": ("activity", {}, 7, 1),
        "activity hour 1 d": ("activity", {}, 1, 1),
        "activity day 89 d": ("activity", {"step": "day"}, 89, 1),
        "users 7 d": ("users", {}, 7, 24),
        "users 89 d": ("users", {}, 89, 24),
        "sessions of a user": ("sessions", {"user_id": user[0]}, 89, 1),
        "session": ("session", {"user_id": user[0], "session_id": user[1]}, None, 1),
        "rejected": ("rejected", {}, 30, 1),
    }  # fmt: skip
    http = requests.Session()
    print(f"{'':24} {'median':>8} {'p95':>8}  ms")
    for name, (endpoint, parameters, days, grain) in cases.items():
        times = []
        for number in range(rounds):
            last = (
                (end - timedelta(hours=number % 12)) if grain == 1 else end.replace(hour=0) - timedelta(days=number % 7)
            )
            bounds = {} if days is None else {"from": (last - timedelta(days=days)).isoformat(), "to": last.isoformat()}
            began = time.perf_counter()
            answer = http.get(f"{base}/{endpoint}", params={**parameters, **bounds}, timeout=30)
            times.append(1000 * (time.perf_counter() - began))
            assert answer.status_code == 200, answer.text
            if number % (12 if grain == 1 else 7) == 0:
                time.sleep(KEEP_S)  # so that no reply is one that is kept for other viewers
                for _ in range(3):  # a machine that was idle takes some 20 ms more for what comes first
                    http.get(f"{base}/freshness", timeout=30)
        times = sorted(times[12:])  # without the first request for each range: warm
        print(f"{name:24} {statistics.median(times):8.1f} {times[int(0.95 * len(times))]:8.1f}", flush=True)


if __name__ == "__main__":
    main()
