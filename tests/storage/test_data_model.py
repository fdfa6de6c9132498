"""docs/data-model.md: its diagram is the schema, and each of its queries runs and finds what the text says."""

import re
from typing import Any

import pytest

from support.console import Console
from support.processes import ROOT, Postgres

DOCUMENT = (ROOT / "docs" / "data-model.md").read_text()
QUERIES = re.findall(r"^```sql\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
USER, SESSION = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d", "d94d8b2d-25f1-4b5e-a7e3-3ad9b2b0e3a1"


@pytest.fixture(scope="module")
def filled(postgres: Postgres) -> Console:
    """A database in which a user has had the session that the queries ask for."""
    console = Console(postgres.clone())
    console.sql("INSERT INTO users (user_id, name) VALUES (:u, 'Greg')", u=USER)
    values: list[tuple[str, float]] = [
        ("talked_time", 12.5),
        ("voice_sentiment", 0.5),
        ("speaker_used", 1),
        ("voice_sentiment", -0.5),
    ]
    console.ingest(*(
        {"user_id": USER, "session_id": SESSION, "timestamp": f"2024-08-08T12:00:{second:02}Z", "metric_type": name,
         "value": value}
        for second, (name, value) in enumerate(values)
    ))  # fmt: skip
    console.sql("INSERT INTO rejected_metrics (route, codes, payload, payload_bytes) VALUES ('ingest', '{}', '', 0)")
    console.run("summaries", "refresh")
    return console


def test_diagram_is_the_schema(console: Console) -> None:
    (diagram,) = re.findall(r"^```mermaid\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert diagram == console.run("schema").output


def test_every_table_and_view_is_described(filled: Console) -> None:
    names = filled.sql("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
                     " AND relkind IN ('r', 'p', 'v')"
                     " AND NOT relispartition AND relname !~ 'yoyo'")  # fmt: skip
    assert [name for (name,) in names if f"`{name}`" not in DOCUMENT] == []


@pytest.mark.parametrize("sql", QUERIES, ids=range(len(QUERIES)))
def test_query_runs_and_finds_something(filled: Console, sql: str) -> None:
    assert filled.sql(sql.replace(";", ""))


@pytest.mark.parametrize(
    ("start", "rows"),
    [
        ("SELECT name, value", [["Greg", 12.5]]),
        ("SELECT hour AS time", [[..., 0.0, 2]]),
        ("SELECT user_id, session_id, mean", [[..., ..., 0.0, -1.0]]),
        ("SELECT day, count", [[..., 1, 4]]),
    ],
)
def test_query_finds_what_it_says(filled: Console, start: str, rows: list[list[Any]]) -> None:
    (sql,) = (query for query in QUERIES if query.startswith(start))
    found = filled.sql(sql.replace(";", ""))
    assert [[cell for cell, wanted in zip(row, rows[0], strict=True) if wanted is not ...] for row in found] == [
        [wanted for wanted in row if wanted is not ...] for row in rows
    ]
