"""deploy/grafana and deploy/prometheus: files for Grafana and Prometheus, which find what the functions offer."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from dashboard.data import fill
from metrics_ingest.admin import summaries
from support.metrics import current, register
from support.node import node_modules
from support.processes import ROOT, Postgres, Server, connected, eventually, function, query
from support.prometheus import Prometheus, prometheus, scrape, tool

GRAFANA, RULES = ROOT / "deploy/grafana", ROOT / "deploy/prometheus"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in (GRAFANA / "dashboards").glob("*.json")}
PANELS = [(name, panel) for name, board in DASHBOARDS.items() for panel in board["panels"]]
TARGETS = {
    f"{name}: {panel['title']} {target['refId']}": target for name, panel in PANELS for target in panel["targets"]
}
SQL = {name: target["rawSql"] for name, target in TARGETS.items() if "rawSql" in target}
PROMQL = {name: target["expr"] for name, target in TARGETS.items() if "expr" in target}
# Enumerations as the strings that JSON has.
CHECK = """import type { Dashboard } from "@grafana/schema";
type Plain<T> = T extends string ? `${T}` : T extends (infer E)[] ? Plain<E>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
export const board: Plain<Dashboard> = """


@pytest.fixture(scope="module")
def reader_url(postgres: Postgres) -> Iterator[str]:
    """A database with data and summaries, for metrics_reader."""
    url = postgres.clone()
    fill(url)
    with connected(url) as connection:
        summaries.refresh(connection)
    postgres.run("ALTER ROLE metrics_reader LOGIN")
    yield url.replace("postgres@/", "metrics_reader@/")
    postgres.run("ALTER ROLE metrics_reader NOLOGIN")


def expanded(sql: str, start: str = "2000-01-01T00:00:00Z", end: str = "2100-01-01T00:00:00Z") -> str:
    """Replace Grafana's macros and variables as its data source for PostgreSQL does."""
    sql = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN '{start}' AND '{end}'", sql)
    sql = sql.replace("$__timeFrom()", f"'{start}'").replace("$__timeTo()", f"'{end}'")
    return sql.replace("$metric_type", "'talked_time','voice_sentiment'")


def test_dashboards_match_grafanas_schema(tmp_path: Path) -> None:
    modules = node_modules(Path(__file__).parent / "grafana")
    (tmp_path / "node_modules").symlink_to(modules)
    for name, board in DASHBOARDS.items():
        (tmp_path / f"{name}.ts").write_text(f"{CHECK}{json.dumps(board)};\n")
    (tmp_path / "wrong.ts").write_text(f"{CHECK}{json.dumps({**DASHBOARDS['usage'], 'schemaVersion': 'x'})};\n")
    command = [str(modules / ".bin/tsc"), "--noEmit", "--strict", "--skipLibCheck", "--target", "es2022"]
    command += ["--module", "esnext", "--moduleResolution", "bundler", *map(str, tmp_path.glob("*.ts"))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert [line.partition("(")[0] for line in done.stdout.splitlines()] == ["wrong.ts"], done.stdout


@pytest.mark.parametrize("panel", SQL)
def test_each_sql_panel_shows_data_to_the_reader(reader_url: str, panel: str) -> None:
    rows = query(reader_url, expanded(SQL[panel]))
    assert rows
    assert any(value is not None for row in rows for value in row)
    nothing = query(reader_url, expanded(SQL[panel], "1990-01-01T00:00:00Z", "1990-01-02T00:00:00Z"))
    assert len(nothing) <= 1  # an empty range is no error


def test_figures_are_those_of_the_metrics(reader_url: str) -> None:
    def figure(title: str) -> Any:
        (panel,) = (panel for _, panel in PANELS if panel["title"] == title)
        ((value,),) = query(reader_url, expanded(panel["targets"][0]["rawSql"]))
        return value

    def of_type(metric_type: str, expression: str) -> Any:
        sql = f"SELECT {expression} FROM metrics WHERE metric_type = '{metric_type}'"
        return query(reader_url, sql)[0][0]

    assert figure("Metrics") == query(reader_url, "SELECT count(*) FROM metrics")[0][0]
    assert figure("Active users") == query(reader_url, "SELECT count(DISTINCT user_id) FROM metrics")[0][0]
    assert figure("Sessions") == query(reader_url, "SELECT count(*) FROM sessions")[0][0]
    assert figure("Talk time") == pytest.approx(of_type("talked_time", "sum(value)"))
    assert figure("Microphone used") == pytest.approx(of_type("microphone_used", "avg(value)"))
    assert figure("Mean sentiment") == pytest.approx(of_type("voice_sentiment", "avg(value)"))


def test_sources_are_the_ones_that_are_provisioned() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/metrics-ingest.yml").read_text())["datasources"]
    provisioned = {(source["type"], source["uid"]) for source in sources}
    used = {(target["datasource"]["type"], target["datasource"]["uid"]) for target in TARGETS.values()}
    assert used == provisioned
    assert "database" in sources[0]["jsonData"]  # where Grafana 10 and later look for it
    assert sorted(board["uid"] for board in DASHBOARDS.values()) == [
        "metrics-ingest-ingestion",
        "metrics-ingest-usage",
    ]


def test_rules_are_valid_and_fire_when_they_should() -> None:
    for command in (
        ["check", "rules", "alerts.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
    ):
        done = subprocess.run(
            [tool("promtool"), *command], cwd=RULES, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def scraped(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with our rules that has scraped ingest and dashboard several times while they worked."""
    url = postgres.clone()
    user = register(url)
    with function("ingest", url, PROMETHEUS="true") as ingest, function("dashboard", url, PROMETHEUS="true") as board:

        def send(**changes: Any) -> None:
            requests.post(ingest.url, json=current(user, **changes), timeout=10)

        send()
        send(value=-1)
        with connected(url) as connection:
            summaries.refresh(connection)
        directory = tmp_path_factory.mktemp("prometheus")
        (directory / "alerts.yml").write_text((RULES / "alerts.yml").read_text())
        configuration = yaml.safe_load((RULES / "prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        targets = [f"127.0.0.1:{server.port}" for server in (ingest, board)]
        configuration["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
        with prometheus(directory, yaml.safe_dump(configuration)) as running:
            for _ in range(8):  # `rate` needs a rise between two scrapes
                send()
                send(value=-1)
                eventually(_seconds_passed(running))
            yield running


def _seconds_passed(running: Prometheus) -> Callable[[], bool]:
    def stored() -> float:
        found = running.query("sum(metrics_ingest_stored_total)")
        return float(found[0]["value"][1]) if found else 0

    before = stored()
    return lambda: stored() > before


@pytest.mark.slow
@pytest.mark.parametrize("panel", PROMQL)
def test_each_panel_of_prometheus_finds_its_series(scraped: Prometheus, panel: str) -> None:
    expression = PROMQL[panel].replace("$__rate_interval", "1m")
    found = scraped.query(expression)
    assert found, expression
    assert all(result["value"][1] != "NaN" for result in found), found


@pytest.mark.slow
def test_prometheus_has_the_targets_and_the_rules(scraped: Prometheus) -> None:
    targets = scraped.get("targets")["activeTargets"]
    assert [target["health"] for target in targets] == ["up", "up"], targets
    rules = scraped.get("rules")["groups"][0]["rules"]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert {rule["name"] for rule in rules if rule["state"] == "firing"} <= {"MetricsIngestRefusedShare"}


def test_expressions_name_only_what_the_functions_offer(database_url: str, serve: Callable[..., Server]) -> None:
    user = register(database_url)
    ingest = serve("ingest", database_url, PROMETHEUS="true")
    requests.post(ingest.url, json=current(user), timeout=10)
    requests.post(ingest.url, json=current(user, value=-1), timeout=10)
    with connected(database_url) as connection:
        summaries.refresh(connection)
    board = serve("dashboard", database_url, PROMETHEUS="true")
    offered = {key.partition("{")[0] for url in (ingest.url, board.url) for key in scrape(f"{url}/metrics")}
    texts = [*PROMQL.values(), (RULES / "alerts.yml").read_text()]
    named = set(re.findall(r"metrics_ingest_[a-z_]+", " ".join(texts)))
    assert named <= offered | {name.removesuffix("_bucket") for name in offered}
