"""What the tests of the operator's commands share."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from metrics_ingest.cli import main
from metrics_ingest.settings import read_database
from metrics_ingest.store import connect
from processes import query

COLUMNS = ("user_id", "timestamp", "metric_id", "session_id", "metric_type", "value")


def ingest(*metrics: dict[str, Any]) -> str:
    """The statement that stores metrics as the functions do; what they leave out is filled in."""
    defaults = {"metric_type": "talked_time", "value": 1}
    complete = [{"metric_id": uuid4(), "session_id": uuid4(), **defaults, **metric} for metric in metrics]
    columns = ("{" + ",".join(str(metric[name]) for metric in complete) + "}" for name in COLUMNS)
    new_sessions = "{" + ",".join("t" for _ in metrics) + "}"
    return "SELECT store_metrics(" + ", ".join(f"'{column}'" for column in (*columns, new_sessions)) + ")"


@dataclass(frozen=True)
class Console:
    """`metrics-ingest` on one database."""

    url: str

    def run(self, *arguments: str, exit_code: int = 0, **options: Any) -> Result:
        """Run a command in this process and check its exit code."""
        result = CliRunner().invoke(main, arguments, env={"DATABASE_URL": self.url}, **options)
        assert result.exit_code == exit_code, (result.output, result.exception)
        return result

    def json(self, *arguments: str, exit_code: int = 0) -> Any:
        """Run a command with --json and return what it says."""
        return json.loads(self.run(*arguments, "--json", exit_code=exit_code).stdout)

    def sql(self, sql: str, **parameters: Any) -> list[Any]:
        """Look into the database."""
        return query(self.url, sql, **parameters)

    def waits(self) -> bool:
        """Whether someone waits for a lock."""
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return bool(self.sql(waiting))

    def connect(self) -> Any:
        """A connection of the caller's own."""
        return connect(read_database({"DATABASE_URL": self.url}), 60)

    def user(self) -> str:
        """A new user's id."""
        user_id = str(uuid4())
        self.sql("INSERT INTO users (user_id, name) VALUES (:u, 'Greg')", u=user_id)
        return user_id

    def ingest(self, *metrics: dict[str, Any]) -> Any:
        """Store metrics as the functions do; return the outcomes."""
        return self.sql(ingest(*metrics))[0][0]


@pytest.fixture
def console(database_url: str) -> Console:
    """The command on a database of the test's own."""
    return Console(database_url)


@pytest.fixture
def filled(console: Console) -> Callable[[str, int], str]:
    """Store so many metrics of a new user in the month that begins then; return the user's id."""

    def fill(month: str, count: int) -> str:
        user_id = console.user()
        console.sql("INSERT INTO sessions SELECT CAST(:u AS uuid), CAST(:u AS uuid), now()", u=user_id)
        console.sql(
            "INSERT INTO metrics"
            " SELECT CAST(:u AS uuid), CAST(:m AS timestamptz) + n * interval '1 second', gen_random_uuid(),"
            " CAST(:u AS uuid), 'talked_time', n FROM generate_series(1, CAST(:n AS integer)) n",
            u=user_id, m=month, n=count,
        )  # fmt: skip
        return user_id

    return fill
