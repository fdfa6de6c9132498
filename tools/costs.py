"""Measure what the costliest known requests cost: the table in SECURITY.md, "What a request may cost".

    .venv/bin/python tools/costs.py [--rounds 5]

Starts an embedded PostgreSQL and the functions, and sends each request several times over loopback. Prints the CPU
time of the function per megabyte of the body (decompressed) and per request, the longest time that another request
waited meanwhile (the least of the rounds, because the machine has other work), the size of the reply, and the memory
that the request added.
"""

import argparse
import gzip
import json
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import psutil
import requests

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.memory import Peak
from support.metrics import register
from support.processes import Postgres, Server, function

LIMIT = 10_485_760
MB = 1_000_000
NDJSON = "application/x-ndjson"


def batch(item: str, count: int = 10_000) -> bytes:
    return f"[{','.join([item] * count)}]".encode()


def metrics(user: str, timestamp: str = "2024-08-08T12:34:56Z") -> bytes:
    item = {"user_id": user, "metric_type": "talked_time", "value": 1, "timestamp": timestamp}
    return json.dumps([{**item, "metric_id": str(uuid4())} for _ in range(10_000)]).encode()


def cases(user: str) -> dict[str, tuple[str, bytes, str]]:
    """Each: the function, the body, its media type."""
    fields = "{" + ",".join(f'"field{n}":0' for n in range(10)) + "}"
    return {
        "10,000 valid metrics": ("ingest_batch", metrics(user), ""),
        "10,000 metrics of unknown users": ("ingest_batch", metrics(str(uuid4())), ""),
        "10,000 metrics of the future": ("ingest_batch", metrics(user, "2199-01-01T00:00:00Z"), ""),
        "10,000 empty objects": ("ingest_batch", batch("{}"), ""),
        "10,000 empty objects as lines": ("ingest_batch", b"{}\n" * 10_000, NDJSON),
        "10,000 lines that are no JSON": ("ingest_batch", b"{x}\n" * 10_000, NDJSON),
        "10,000 objects with a wrong value": ("ingest_batch", batch('{"value":""}'), ""),
        "10,000 objects of unknown fields": ("ingest_batch", batch(fields), ""),
        "10,000 long texts": ("ingest_batch", batch('{"user_id":"' + "a" * 1_000 + '"}'), ""),
        "one text of 10 MB": ("ingest", b'{"x":"' + b"a" * (LIMIT - 8) + b'"}', ""),
        "one text of 10 MB, wide": ("ingest", '{"x":"😀'.encode() + b"a" * (LIMIT - 12) + b'"}', ""),
        "an address of 10 MB": ("users", b'{"name":"x","email":"' + b"a@" * (LIMIT // 2 - 12) + b'"}', ""),
    }


def measure(server: Server, name: str, body: bytes, media_type: str, rounds: int) -> tuple[float, float, int, int]:
    """Return CPU seconds per request, the shortest of the longest waits in seconds, the reply's size, and memory."""
    (worker,) = server.workers
    process = psutil.Process(worker.pid)
    packed = gzip.compress(body, 6)
    headers = {"Content-Encoding": "gzip", "Content-Type": media_type or "application/json"}
    waits, memory, reply = [], 0, 0

    def send() -> int:
        return len(requests.post(f"{server.url}/{name}/", data=packed, headers=headers, timeout=60).content)

    before = process.cpu_times()
    for _ in range(10 * rounds):  # apart from the others, because the requests that wait take CPU time, too
        send()
    after = process.cpu_times()
    for _ in range(rounds):
        peak, done, longest = Peak(server), threading.Event(), [0.0]

        def ask(done: threading.Event = done, longest: list[float] = longest) -> None:
            with requests.Session() as session:
                while not done.is_set():
                    started = time.perf_counter()
                    session.get(server.url, timeout=30)
                    longest[0] = max(longest[0], time.perf_counter() - started)
                    time.sleep(0.002)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.05)
        reply = send()
        done.set()
        asking.join()
        waits.append(longest[0])
        memory = max(memory, peak.growth)
    spent = (after.user + after.system - before.user - before.system) / (10 * rounds)
    return spent, min(waits), reply, memory


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=5)
    rounds = arguments.parse_args().rounds
    postgres = Postgres()
    url = postgres.clone()
    user = str(uuid4())
    register(url, user)
    print("| request | sent, gzip | body | CPU | CPU per MB | another waits | reply | memory |")
    print("|---|---|---|---|---|---|---|---|")
    with function("ingest", url) as one, function("ingest_batch", url) as many, function("users", url) as users:
        servers = {"ingest": one, "ingest_batch": many, "users": users}
        for title, (name, body, media_type) in cases(user).items():
            sent = len(gzip.compress(body, 6))
            cpu, wait, reply, memory = measure(servers[name], name, body, media_type, rounds)
            print(
                f"| {title} | {sent / 1e3:,.1f} kB | {len(body) / 1e3:,.0f} kB | {cpu * 1e3:.0f} ms "
                f"| {cpu / (len(body) / MB):.2f} s | {wait * 1e3:.0f} ms "
                f"| {reply / 1e3:,.1f} kB | {memory / MB:.0f} MB |"
            )
    postgres.close()


if __name__ == "__main__":
    main()
