"""What the tests of the operator's commands share."""

import json
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from click.testing import CliRunner, Result

from metrics_ingest.admin.cli import main
from metrics_ingest.settings import read_database
from metrics_ingest.storage.driver import connect
from support.processes import query

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
