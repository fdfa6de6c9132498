"""`make demo`: two weeks of realistic data of 40 users, through the public API of a running `make run`.

The data of a day depends on its date alone, ids included, so that a second run stores nothing twice, and a run on the
next day adds that day.
"""

import gzip
import json
import math
import os
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import requests
from pg8000.exceptions import Error

from metrics_ingest.admin.database import failure
from metrics_ingest.local.postgres import running_url
from metrics_ingest.settings import read_database
from metrics_ingest.storage.driver import connect

DAYS = 14
CHUNK = 5_000
NAMESPACE = uuid.UUID("6d657472-6963-4569-8e67-657374000000")  # ids derived from it are those of the demo alone
CUSTOM_TYPE = "reaction_time"
ADD_CUSTOM_TYPE = """
    INSERT INTO metric_types (metric_type, kind, unit, min_value, max_value, aggregation, description)
    VALUES (:name, 'gauge', 'ms', 0, 60000, 'mean', 'Demo: time until the first word of an answer')
    ON CONFLICT DO NOTHING
"""
NAMES = (
    "Ada Mensah", "Aiko Tanaka", "Alejandra Ruiz", "Amir Haddad", "Anna Kowalska", "Benoît Lefèvre", "Bilal Aydin",
    "Carla Esposito", "Chidi Okafor", "Chloé Martin", "Daniel Weiss", "Dina Rahman", "Elif Demir", "Emil Sørensen",
    "Fatou Diallo", "Felix Braun", "Greg Miller", "Hanna Virtanen", "Ines Almeida", "Ivan Petrov", "Jana Nováková",
    "João Pereira", "Kavya Iyer", "Lars Lindqvist", "Leila Karimi", "Linh Nguyen", "Marco Ricci", "Maya Cohen",
    "Mei Lin", "Niamh O'Brien", "Noah Fischer", "Olga Shevchenko", "Pablo García", "Priya Sharma", "Rosa Jiménez",
    "Samir Patel", "Sofia Papadaki", "Thabo Nkosi", "Yuki Sato", "Zoë van Dijk",
)  # fmt: skip


def main() -> None:
    """Send everything, say what became of it and where to look. Exit with one line when the API cannot be reached."""
    base = f"http://{os.environ.get('HOST') or '127.0.0.1'}:{os.environ.get('PORT') or '8000'}"
    began = time.monotonic()
    try:
        requests.get(base, timeout=5).raise_for_status()
    except requests.RequestException:
        raise SystemExit(f"metrics-ingest: nothing answers at {base}; start it with `make run`") from None
    add_custom_type()
    with requests.Session() as http:
        for number, name in enumerate(NAMES):
            send(
                http, f"{base}/users/", json.dumps({"user_id": str(user_id(number)), "name": name}), "application/json"
            )
        totals: Counter[str] = Counter()
        for chunk in chunks(metrics(datetime.now(UTC))):
            lines = "\n".join(json.dumps(metric) for metric in chunk)
            report = send(http, f"{base}/ingest_batch/", lines, "application/x-ndjson")
            totals.update({name: report[name] for name in ("stored", "duplicates", "rejected")})
    sys.stdout.write(
        f"{totals['stored']:,} metrics stored, {totals['duplicates']:,} were there already, {totals['rejected']:,} were"
        f" refused on purpose ({time.monotonic() - began:.1f} s)\nlook: {base}/dashboard/\n"
    )


def send(http: requests.Session, url: str, body: str, media_type: str) -> dict[str, Any]:
    """POST and return the reply. Exit with one line when it is an error of the whole request."""
    headers = {"Content-Type": media_type, "Content-Encoding": "gzip"}
    reply = http.post(url, gzip.compress(body.encode(), 1), headers=headers, timeout=60)
    if reply.status_code >= 500 or reply.status_code == 401:
        raise SystemExit(f"metrics-ingest: {url} answered {reply.status_code}: {reply.text[:300]}")
    answer: dict[str, Any] = reply.json()
    return answer


def add_custom_type() -> None:
    """Register the type that is not among the first four: types have no HTTP API, so in the database."""
    connection = connect(read_database({"DATABASE_URL": os.environ.get("DATABASE_URL") or running_url()}), 10)
    try:
        connection.run(ADD_CUSTOM_TYPE, name=CUSTOM_TYPE)
    except (Error, OSError) as error:
        raise SystemExit(f"metrics-ingest: {failure(error, f'cannot register {CUSTOM_TYPE}').message}") from None
    finally:
        connection.close()


def chunks(items: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The items in lists of at most CHUNK."""
    chunk: list[dict[str, Any]] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def user_id(number: int) -> uuid.UUID:
    """The id of a user of the demo."""
    return uuid.uuid5(NAMESPACE, f"user {number}")


def metrics(now: datetime) -> Iterator[dict[str, Any]]:
    """All metrics up to now, some of which will be refused."""
    today = now.date()
    for ago in range(DAYS, -2, -1):  # where it is tomorrow already, too
        day = today - timedelta(days=ago)
        for number in range(len(NAMES)):
            for metric in metrics_of_day(day, number):
                if metric["timestamp"] <= now:
                    yield {**metric, "timestamp": metric["timestamp"].isoformat()}
        if ago > 0:
            yield from faulty(day)


def metrics_of_day(day: date, number: int) -> Iterator[dict[str, Any]]:
    """The sessions of one user on one day: fewer at weekends, most in the middle of the morning and afternoon."""
    random_of_user = random.Random(f"user {number}")
    eagerness = random_of_user.lognormvariate(0, 0.6)
    mood = random_of_user.gauss(0.15, 0.25)
    time_zone = random_of_user.choice((-8, -5, 0, 0, 1, 1, 1, 2, 2, 5, 9))
    source = random.Random(f"{day} {number}")
    weekend = day.weekday() >= 5
    count = min(6, math.floor(source.expovariate(1 / (eagerness * (0.5 if weekend else 2.2)))))
    for session in range(count):
        hour = source.choice((source.gauss(10, 1.6), source.gauss(14.5, 2), source.gauss(16, 2), source.uniform(7, 22)))
        start = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(hours=min(max(hour, 0), 23) - time_zone)
        yield from metrics_of_session(source, start, number, session, mood + 0.1 * math.sin(day.toordinal() / 2))


def metrics_of_session(
    source: random.Random, start: datetime, number: int, session: int, mood: float
) -> Iterator[dict[str, Any]]:
    """A conversation of some minutes: what was talked in each half minute, with moods, microphone and speaker."""
    session_id = uuid.uuid5(NAMESPACE, f"session {start.date()} {number} {session}")
    at, sentiment, length = start, mood, max(2, int(source.lognormvariate(2.9, 0.7)))
    for step in range(min(length, 120)):
        at += timedelta(seconds=source.uniform(20, 40))
        sentiment = max(-1.0, min(1.0, sentiment + source.gauss(0, 0.12) + (mood - sentiment) * 0.1))
        talked = source.random() < 0.75
        values: dict[str, float] = {
            "talked_time": round(source.uniform(3, 28), 2) if talked else 0,
            "microphone_used": int(talked),
            "speaker_used": int(source.random() < 0.85),
            "voice_sentiment": round(sentiment, 3),
        }
        if step % 4 == 0:
            values[CUSTOM_TYPE] = round(min(source.lognormvariate(6.4, 0.4), 60_000))
        for metric_type, value in values.items():
            yield {
                "user_id": str(user_id(number)),
                "session_id": str(session_id),
                "metric_id": str(uuid.uuid5(session_id, f"{step} {metric_type}")),
                "metric_type": metric_type,
                "value": value,
                "timestamp": at,
            }


def faulty(day: date) -> Iterator[dict[str, Any]]:
    """A few metrics of the day that are refused, each for another reason."""
    source = random.Random(f"faulty {day}")
    good = {
        "user_id": str(user_id(source.randrange(len(NAMES)))),
        "metric_type": "voice_sentiment",
        "value": 0.5,
        "timestamp": datetime(day.year, day.month, day.day, tzinfo=UTC).isoformat(),
        "metric_id": str(uuid.uuid5(NAMESPACE, f"faulty {day}")),
    }
    faults: tuple[dict[str, Any], ...] = (
        {"value": round(source.uniform(1.5, 9), 1)},
        {"metric_type": "talk_time", "value": 12},
        {"user_id": str(uuid.uuid5(NAMESPACE, "nobody"))},
        {"timestamp": f"{day}T12:00:00"},
    )
    for fault in source.sample(faults, source.randint(0, 3)):
        yield {**good, **fault}


if __name__ == "__main__":
    main()
