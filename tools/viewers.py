"""Measure what viewers of the dashboard cost ingestion: single metrics a second, with 20 live pages and without.

    .venv/bin/python tools/viewers.py [--viewers 20] [--pairs 6] [--seconds 15] [--metrics 1000000]

Starts an embedded PostgreSQL (fsync on), the functions `ingest` and `dashboard`, and wrk. A viewer asks for what the
page's overview asks for: every five seconds `overview` and `activity`, every minute the rest. A run without viewers and
one with them follow each other, because the speed of a machine drifts.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tools.dashboard import fill

from support.processes import ROOT, Postgres, Server, function, query

REFRESH_S = 5
CONNECTIONS = 32
SERIES = ("talked_time", "microphone_used", "speaker_used", "voice_sentiment")


def main() -> None:
    """Print the requests a second of each run, and the ratio of the medians."""
    arguments = argparse.ArgumentParser()
    for name, default in (("viewers", 20), ("pairs", 6), ("seconds", 15), ("metrics", 1_000_000)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()
    postgres = Postgres(fsync="on")
    try:
        url = postgres.clone()
        fill(url, options.metrics)
        with (
            function("ingest", url) as ingest,
            function("dashboard", url) as dashboard,
            tempfile.NamedTemporaryFile("w") as users,
        ):
            users.writelines(f"{user}\n" for (user,) in query(url, "SELECT user_id FROM users LIMIT 1000"))
            users.flush()
            run_wrk(ingest.port, users.name, 5)
            used = -cpu_seconds(dashboard, url)
            rates: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(options.pairs):
                for watched in (False, True):
                    with live_pages(dashboard.url, url, options.viewers if watched else 0) as asked:
                        rates[watched].append(run_wrk(ingest.port, users.name, options.seconds))
                    print(f"{rates[watched][-1]:8.0f}/s  {len(asked)} requests of viewers", flush=True)
            used += cpu_seconds(dashboard, url)
        report(rates)
        print(f"the dashboard and its connection: {used / options.pairs / options.seconds:.3f} of a CPU while watched")
    finally:
        postgres.close()


def cpu_seconds(dashboard: Server, url: str) -> float:
    """Return what the dashboard has used: its processes, and the process of PostgreSQL that serves it."""
    backends = query(
        url, "SELECT pid FROM pg_stat_activity WHERE query ~ '^COMMIT|newest_refused' AND pid <> pg_backend_pid()"
    )
    processes = [*dashboard.workers, *(psutil.Process(pid) for (pid,) in backends)]
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


def report(rates: dict[bool, list[float]]) -> None:
    """Print the medians, and the ratio of each pair."""
    alone, watched = (statistics.median(rates[key]) for key in (False, True))
    ratios = sorted(after / before for before, after in zip(rates[False], rates[True], strict=True))
    print(f"alone {alone:.0f}/s, watched {watched:.0f}/s: {watched / alone:.3f}")
    print("pairs:", " ".join(f"{ratio:.3f}" for ratio in ratios), f"median {statistics.median(ratios):.3f}")


def run_wrk(port: int, users: str, seconds: int) -> float:
    """Send single metrics for some seconds; return how many a second were stored."""
    output = subprocess.run(
        ["wrk", "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s", "--timeout", "30s",
         "--script", "benchmarks/load.lua", f"http://127.0.0.1:{port}", "--", users, "/ingest/", "0"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    facts = json.loads(output.splitlines()[-1])
    assert facts["refused"] == facts["lost"] == 0, facts
    return float(facts["requests"] / facts["seconds"])


@contextmanager
def live_pages(base: str, url: str, number: int) -> Iterator[list[str]]:
    """So many pages that show the overview until the block ends; yields what they have asked for."""
    stop = threading.Event()
    asked: list[str] = []
    threads = [threading.Thread(target=watch, args=(base, stop, asked, REFRESH_S * n / number)) for n in range(number)]
    if number:
        threads.append(threading.Thread(target=pretend_to_refresh, args=(url, stop)))
    for thread in threads:
        thread.start()
    try:
        yield asked
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def watch(base: str, stop: threading.Event, asked: list[str], delay: float) -> None:
    """Be one page. By http.client, because it shares the processor, and requests would take more than the dashboard."""
    http = HTTPConnection(urlsplit(base).netloc, timeout=30)
    often: tuple[tuple[str, dict[str, str]], ...]
    pause = delay
    for number in itertools.count(round(delay * 60 / REFRESH_S**2)):  # the pages were opened at different times
        if stop.wait(pause):
            return
        pause = REFRESH_S
        end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
        now, before = (
            {"from": (end - timedelta(days=days)).isoformat(), "to": (end - timedelta(days=days - 7)).isoformat()}
            for days in (7, 14)
        )
        often = (("overview", now), ("activity", {**now, "step": "hour"}))
        seldom = (("overview", before), ("activity", {**now, "step": "day"}), *(
            ("series", {**now, "metric_type": name, "step": "day"}) for name in SERIES))  # fmt: skip
        for endpoint, parameters in often + (seldom if number % (60 // REFRESH_S) == 0 else ()):
            http.request("GET", f"/dashboard/api/{endpoint}?{urlencode(parameters)}")
            answer = http.getresponse()
            text = answer.read()
            assert answer.status == 200, text
            asked.append(endpoint)
        http.close()  # the function closes a connection that is idle for as long as the pause


def pretend_to_refresh(url: str, stop: threading.Event) -> None:
    """Let the dashboard take the summaries for refreshed, so that it keeps no figure for longer than in operation."""
    while not stop.wait(REFRESH_S):
        query(url, "UPDATE summary_state SET refreshed_at = clock_timestamp()")


if __name__ == "__main__":
    main()
