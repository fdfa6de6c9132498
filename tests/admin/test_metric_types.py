"""`metrics-ingest type`, and what all commands share: help, output and exit codes."""

import os
import subprocess
import sys

import pytest

from metrics_ingest.admin.cli import COMMANDS
from support.console import Console
from support.processes import BIN, Stack

ADD = ("type", "add", "heart_rate", "--kind", "gauge", "--unit", "bpm", "--min", "20", "--max", "250")


def test_new_type_is_accepted_by_a_running_function_and_a_retired_one_refused(
    stack: Stack, metric: dict[str, object]
) -> None:
    console = Console(stack.database_url)
    metric |= {"metric_type": "heart_rate", "value": 61}
    assert stack.send(metric).json()["code"] == "unknown_metric_type"
    assert console.json(*ADD)["aggregation"] == "mean"
    assert stack.send(metric).status_code == 200
    console.run("type", "retire", "heart_rate")
    answer = stack.send(metric)
    assert (answer.status_code, answer.json()["detail"]) == (422, "metric type heart_rate is retired")
    assert len(stack.stored(str(metric["user_id"]))) == 1
    console.run("type", "retire", "heart_rate", "--undo")
    assert stack.send(metric).headers["Idempotent-Replayed"] == "true"


def test_range_holds_from_when_it_is_set(console: Console) -> None:
    user = console.user()
    console.run("type", "set", "talked_time", "--max", "10")
    at = {"user_id": user, "timestamp": "2024-08-08T12:00:00Z"}
    assert console.ingest(at | {"value": 11})[0]["outcome"] == "value_out_of_range"
    changed = console.json("type", "set", "talked_time", "--max", "none", "--min", "-5", "--description", "x")
    assert (changed["max_value"], changed["min_value"], changed["description"], changed["unit"]) == (None, -5, "x", "s")
    assert console.ingest(at | {"value": 1e9}, at | {"value": -5}) is None


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("add", "talked_time", "--kind", "duration"), 1, "talked_time exists already"),
        (("add", "Talk", "--kind", "duration"), 1, "'Talk' is no valid name"),
        (("add", "x" * 65, "--kind", "duration"), 1, "64 characters at most"),
        (("add", "mood", "--kind", "score", "--min", "2", "--max", "1"), 1, "the range of mood is empty"),
        (("add", "mood", "--kind", "score", "--aggregation", "sum"), 2, "a score is aggregated by mean"),
        (("add", "mood", "--kind", "score", "--max", "inf"), 2, "finite"),
        (("add", "on", "--kind", "flag", "--max", "2"), 2, "a flag is 0 or 1"),
        (("add", "mood", "--kind", "feeling"), 2, "feeling"),
        (("set", "voice_sentiment", "--aggregation", "sum"), 2, "a score is aggregated by mean"),
        (("set", "voice_sentiment", "--min", "low"), 2, "'low' is no number"),
        (("show", "mood"), 1, "there is no metric type 'mood'"),
        (("retire", "mood"), 1, "there is no metric type 'mood'"),
    ],
)  # fmt: skip
def test_invalid_type_is_refused_with_the_reason(
    console: Console, arguments: tuple[str, ...], exit_code: int, message: str
) -> None:
    assert message in console.run("type", *arguments, exit_code=exit_code).output
    assert console.sql("SELECT count(*) FROM metric_types") == [[4]]


def test_retired_types_are_listed_on_demand_and_kept(console: Console) -> None:
    console.run("type", "retire", "speaker_used")
    (first,) = (t["retired_at"] for t in console.json("type", "list", "--all") if t["metric_type"] == "speaker_used")
    assert "speaker_used" not in [t["metric_type"] for t in console.json("type", "list")]
    assert console.json("type", "retire", "speaker_used")["retired_at"] == first


def test_table_for_people_has_the_rows_of_the_json(console: Console) -> None:
    lines = console.run("type", "list").output.splitlines()
    assert lines[0].split()[:3] == ["metric_type", "kind", "unit"]
    assert [line.split()[0] for line in lines[1:]] == [t["metric_type"] for t in console.json("type", "list")]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize(("columns", "has_table"), [("80", True), ("40", False)])
def test_terminal_gets_a_table_where_it_fits_and_else_a_block_for_each_type(
    console: Console, columns: str, has_table: bool
) -> None:
    import pty

    master, slave = pty.openpty()
    command = [str(BIN / "metrics-ingest"), "type", "list"]
    environment = {**os.environ, "DATABASE_URL": console.url, "COLUMNS": columns, "TERM": "xterm"}
    subprocess.run(command, stdout=slave, env=environment, check=True)
    os.close(slave)
    text = os.read(master, 100_000).decode()
    os.close(master)
    assert ("─" in text) == has_table
    assert ("metric types, 4 of 4" in text) != has_table
    assert "voice_sentiment" in text


def test_unreachable_database_has_its_own_exit_code() -> None:
    result = Console("postgresql://nobody@127.0.0.1:1/none").run("type", "list", exit_code=3)
    assert "cannot reach the database" in result.output
    assert "DATABASE_URL" in Console("").run("type", "list", exit_code=2).output


def test_every_command_has_help_and_the_root_imports_none_of_them() -> None:
    code = "import sys, metrics_ingest.admin.cli as c; c.main(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    for name, (module, text) in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert text in done.stdout
        assert f"metrics_ingest.admin.{module}" not in loaded
        assert "Options:" in Console("").run(name, "--help").output
    assert "metrics_ingest.admin.cli" in loaded
    assert not {"pg8000", "pydantic", "rich", "requests"} & set(loaded)
