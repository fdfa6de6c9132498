"""`metrics-ingest user add|list|load|export`, `load --register-users`, and a whole installation that moves."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from support.console import Console
from support.processes import Postgres, Stack, function

USERS = "SELECT user_id::text, name, email, created_at FROM users ORDER BY user_id"


def test_user_is_added_and_changed(console: Console) -> None:
    added = console.json("user", "add", "Greg", "--email", "greg@gmail.com")
    assert console.sql("SELECT user_id::text, name, email FROM users") == [[added["user_id"], "Greg", "greg@gmail.com"]]
    console.run("user", "add", "Gregor", "--id", added["user_id"])
    assert console.sql("SELECT name, email FROM users") == [["Gregor", "greg@gmail.com"]]
    assert "email" in console.run("user", "add", "Greg", "--email", "nobody", exit_code=2).stderr
    assert "name" in console.run("user", "add", "", exit_code=2).stderr


def test_users_are_listed_and_searched(console: Console) -> None:
    ids = [
        console.json("user", "add", name, "--email", f"{n}@x.test")["user_id"] for n, name in enumerate(("Zoë", "Ann"))
    ]
    assert [row["name"] for row in console.json("user", "list")] == ["Ann", "Zoë"]
    for search, found in (("zo", ["Zoë"]), ("1@X", ["Ann"]), (ids[0].upper(), ["Zoë"]), ("%", []), ("_", [])):
        assert [row["name"] for row in console.json("user", "list", "--search", search)] == found
    assert "--limit shows more" in console.run("user", "list", "--limit", "1").stderr


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_export_is_loaded_as_it_was(console: Console, postgres: Postgres, tmp_path: Path, form: str) -> None:
    console.sql(
        "INSERT INTO users VALUES (gen_random_uuid(), 'Zoë, \"Z\"', 'zoe@x.test', '2020-01-02T03:04:05.678901Z')"
    )
    console.sql("INSERT INTO users VALUES (gen_random_uuid(), E'O''Greg \\\\', NULL, '2021-01-01T00:00:00Z')")
    file = tmp_path / f"users.{form}"
    assert "2 users" in console.run("user", "export", "--format", form, "-o", str(file)).stderr
    other = Console(postgres.clone())
    assert other.json("user", "load", str(file)) == {
        "received": 2, "created": 2, "changed": 0, "unchanged": 0, "rejected": 0}  # fmt: skip
    assert other.sql(USERS) == console.sql(USERS)
    assert other.json("user", "load", str(file))["unchanged"] == 2


def test_rejected_users_are_named_by_their_lines(console: Console, tmp_path: Path) -> None:
    file = tmp_path / "users.ndjson"
    lines: list[Any] = [{"name": "Ann"}, {"name": ""}, {"user_id": "x", "name": "Bob"}, {"name": "Cy", "age": 3}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "no JSON\n")
    done = console.run("user", "load", str(file), exit_code=1)
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
        "invalid_field", "invalid_uuid", "unknown_field", "malformed_json"]  # fmt: skip
    assert "line 2" in done.stderr
    assert console.sql("SELECT name FROM users") == [["Ann"]]
    console.run("user", "load", str(file), exit_code=1)
    assert console.sql("SELECT count(*) FROM users") == [[1]]  # the one without an id got the same again


def test_columns_of_users_are_checked(console: Console, tmp_path: Path) -> None:
    file = tmp_path / "users.csv"
    file.write_text("user_id,name,value\n")
    assert "must be among user_id, name, email, created_at, not value" in console.run(
        "user", "load", str(file), exit_code=1
    ).stderr  # fmt: skip


def test_whole_installation_moves_in_two_commands(postgres: Postgres, tmp_path: Path) -> None:
    """Users with their times, metrics with their sessions and ids: the copy has the same rows."""
    source, target = Console(postgres.clone()), Console(postgres.clone())
    known = [source.user() for _ in range(3)]
    source.ingest(*({"user_id": user, "timestamp": f"2024-08-0{n}", "value": n / 3} for n in (1, 2) for user in known))
    users, metrics = tmp_path / "users.ndjson", tmp_path / "metrics.ndjson"
    source.run("user", "export", "-o", str(users))
    source.run("export", "-o", str(metrics))
    with function("ingest_batch", target.url) as server:
        target.run("user", "load", str(users))
        target.run("load", str(metrics), "--url", server.url)
    for table in (
        "SELECT * FROM users ORDER BY user_id",
        "SELECT user_id, timestamp, metric_id, session_id, metric_type, value FROM metrics ORDER BY 1, 2, 3",
    ):
        assert target.sql(table) == source.sql(table)


def test_load_registers_users_that_nobody_knows(postgres: Postgres, tmp_path: Path) -> None:
    console = Console(postgres.clone())
    known, new, other = console.user(), str(uuid4()), str(uuid4())
    file = tmp_path / "metrics.ndjson"
    entry = {"metric_type": "talked_time", "value": 1, "timestamp": "2024-08-08T12:00:00Z"}
    bad = {**entry, "user_id": other, "value": -1}
    lines = [{**entry, "user_id": user, "metric_id": str(uuid4())} for user in (known, new, new, other)] + [bad]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with function("ingest_batch", console.url) as batch, function("users", console.url) as users:
        arguments = ("load", str(file), "--url", batch.url)
        counts = console.json(*arguments, "--register-users", "--users-url", f"{users.url}/users/", exit_code=1)
        assert counts == {"received": 5, "stored": 4, "duplicates": 0, "rejected": 1}
        assert console.json(*arguments, exit_code=1) == {"received": 5, "stored": 0, "duplicates": 4, "rejected": 1}
    names = console.sql("SELECT name FROM users WHERE user_id = ANY (CAST(:u AS uuid[]))", u=[new, other])
    assert {name for (name,) in names} == {new, other}


def test_load_says_why_metrics_were_rejected(stack: Stack, metric: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "metrics.ndjson"
    file.write_text("".join(json.dumps({**metric, "value": value}) + "\n" for value in (-1, -2, "x")))
    done = Console(stack.database_url).run("load", str(file), "--url", stack.ingest_batch.url, exit_code=1)
    assert "2 value_out_of_range, such as: talked_time must be between 0 and 86400, got -1" in done.stderr
    assert "1 invalid_value, such as: " in done.stderr
