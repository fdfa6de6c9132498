"""What commands read and write does not depend on the settings of the database."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from support.console import Console
from support.processes import Postgres, Server

HOSTILE = {
    "extra_float_digits": "0",
    "datestyle": "'SQL, DMY'",
    "bytea_output": "'escape'",
    "timezone": "'Asia/Kathmandu'",
    "search_path": "'elsewhere'",
    "intervalstyle": "'iso_8601'",
    "standard_conforming_strings": "off",
    "escape_string_warning": "off",
}
VALUES = ("0.3333333333333333", "-0.0", "5e-324", "1.7976931348623157e308", "0.1", "-1.7976931348623157e308", "0")
TIMES = ("2024-02-01T10:20:30.123456Z", "2024-12-11T23:59:59.999999Z", "2000-01-01T00:00:00.000001Z")
ROWS = """
    SELECT user_id, to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), metric_id, session_id,
           metric_type, encode(float8send(value), 'hex')
    FROM public.metrics ORDER BY timestamp, metric_id
"""


@pytest.fixture
def hostile(console: Console) -> Console:
    """A database with unusual settings, and a type that takes any value."""
    console.run("type", "add", "any", "--kind", "gauge")
    ((name,),) = console.sql("SELECT current_database()")
    for setting, value in HOSTILE.items():
        console.sql(f"ALTER DATABASE {name} SET {setting} = {value}")
    return console


def metrics(user: str) -> list[dict[str, Any]]:
    return [
        {"user_id": user, "metric_type": "any", "value": float(value), "timestamp": time, "metric_id": str(uuid4())}
        for value in VALUES
        for time in TIMES
    ]


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_export_and_load_are_an_exact_round_trip(
    hostile: Console, postgres: Postgres, serve: Callable[..., Server], tmp_path: Path, form: str
) -> None:
    user, source, target = str(uuid4()), tmp_path / "sent.ndjson", Console(postgres.clone())
    source.write_text("".join(json.dumps(metric) + "\n" for metric in metrics(user)))
    hostile.sql("INSERT INTO public.users (user_id, name) VALUES (:u, 'Greg')", u=user)
    url = f"{serve('ingest_batch', hostile.url).url}/ingest_batch/"
    stored = {"received": 21, "stored": 21, "duplicates": 0, "rejected": 0}
    assert hostile.json("load", str(source), "--url", url) == stored
    path = tmp_path / f"m.{form}"
    hostile.run("export", "--format", form, "-o", str(path))
    assert hostile.json("load", str(path), "--url", url) == {**stored, "stored": 0, "duplicates": 21}
    target.sql("INSERT INTO users (user_id, name) VALUES (:u, 'Greg')", u=user)
    target.run("type", "add", "any", "--kind", "gauge")
    other = f"{serve('ingest_batch', target.url).url}/ingest_batch/"
    assert target.json("load", str(path), "--url", other) == stored
    hostile_rows, target_rows = (Console(url).sql(ROWS) for url in (hostile.url, target.url))
    assert hostile_rows == target_rows


def test_value_that_differs_in_its_last_digit_is_a_conflict(hostile: Console, serve: Callable[..., Server]) -> None:
    """PostgreSQL compares the two by way of JSON, which has 15 digits where extra_float_digits is 0."""
    import requests

    user = str(uuid4())
    hostile.sql("INSERT INTO public.users (user_id, name) VALUES (:u, 'Greg')", u=user)
    url = f"{serve('ingest_batch', hostile.url).url}/ingest_batch/"
    metric = metrics(user)[0]
    replies = [requests.post(url, json=[metric | {"value": value}], timeout=30).json()
               for value in (0.3333333333333333, 0.3333333333333333, 0.33333333333333326)]  # fmt: skip
    assert [(reply["stored"], reply["duplicates"], reply["rejected"]) for reply in replies] == [
        (1, 0, 0), (0, 1, 0), (0, 0, 1)]  # fmt: skip
    assert replies[2]["errors"][0]["code"] == "metric_conflict"


def test_commands_and_migrations_work_with_any_settings(hostile: Console) -> None:
    assert "nothing to do" in hostile.run("migrate").output
    hostile.sql(
        "INSERT INTO public.rejected_metrics (route, codes, payload, payload_bytes) VALUES ('ingest', '{x}', :p, 3)",
        p=b'\\"\xff',
    )
    (row,) = hostile.json("rejected", "list")
    assert (row["payload"], row["received_at"][-1]) == ("base64:XCL/", "Z")
    assert hostile.json("rejected", "replay")["still_rejected"] == 1
    assert {row["table"] for row in hostile.json("partitions", "maintain")} == {"metrics", "rejected_metrics"}
    months = [row["from"] for row in hostile.json("partitions", "list") if row["from"]]
    assert all(month.endswith("-01") for month in months)
    hostile.run("summaries", "refresh")
    assert "age" in hostile.json("summaries", "status")
    assert len(hostile.json("type", "list")) == 5
    assert "metrics" in hostile.run("schema").output
    hostile.run("migrate", "--rollback", "--yes")
    hostile.run("migrate")
    assert len(hostile.json("type", "list")) == 4
