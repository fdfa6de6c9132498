"""`docker compose up`: the flow of the first README, and what may happen to the containers meanwhile."""

import json
import os
import subprocess
import time
from uuid import uuid4

import pytest
import requests
from pg8000.native import DatabaseError

from containers.engine import FUNCTIONS, Compose, docker, inspect, run
from support.metrics import metric
from support.processes import ROOT, eventually, query

GREG = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"


@pytest.fixture
def user(compose: Compose) -> str:
    return str(compose.post("/users/", {"name": "Greg"}).json()["user_id"])


def test_commands_of_the_first_readme_work_unchanged(compose: Compose) -> None:
    """The INSERT INTO public.users by psql in the container, then its curl line, then its answer."""
    compose.psql(f"INSERT INTO public.users (user_id, name, email) VALUES ('{GREG}', 'Greg', 'greg@gmail.com');")
    data = f'{{"user_id":"{GREG}","metric_type":"talked_time","value":12.34,"timestamp":"2024-08-08T12:34:56Z"}}'
    url = f"{compose.url}/ingest/"
    said = run("curl", "-sS", "-X", "POST", url, "-H", "Content-Type: application/json", "-d", data)
    assert said == '{"message":"Metric stored successfully!"}'


def test_a_user_is_registered_over_http_and_its_metrics_are_accounted_for(compose: Compose) -> None:
    user_id = str(uuid4())
    answer = compose.post("/users/", {"user_id": user_id, "name": "Greg", "email": "greg@gmail.com"})
    assert answer.status_code == 201
    answer = compose.post("/ingest_batch/", [metric(user_id), metric(user_id, value=-1)])
    assert answer.status_code == 207
    assert answer.json()["stored"] == 1
    assert compose.psql(f"SELECT count(*) FROM metrics WHERE user_id = '{user_id}'") == "1"


def test_the_gateway_serves_the_browser_client(compose: Compose) -> None:
    answer = requests.get(f"{compose.url}/client.js", timeout=5)
    assert "MetricsIngest" in answer.text
    assert "javascript" in answer.headers["content-type"]
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_first_segment_picks_the_function(compose: Compose, name: str, slash: str) -> None:
    answer = requests.get(f"{compose.url}/{name}{slash}?a=b", timeout=5)
    if name == "dashboard":
        assert answer.url == f"{compose.url}/dashboard/{'?a=b' * bool(slash)}"
        assert answer.headers["content-type"].startswith("text/html")
    else:
        assert answer.json()["function"] == name
    health = requests.get(f"{compose.url}/{name}/health{slash}", timeout=5).json()
    assert (health["function"], health["database"]) == (name, "ok")


def test_the_front_page_the_api_page_and_the_health_of_all_are_served(compose: Compose) -> None:
    page = requests.get(compose.url, headers={"Accept": "text/html"}, timeout=5)
    assert page.headers["Content-Security-Policy"] == "default-src 'self'; frame-ancestors 'none'"
    assert all(f'data-function="{name}"' in page.text for name in FUNCTIONS)
    assert requests.get(compose.url, timeout=5).json() == {"functions": [f"/{name}/" for name in FUNCTIONS]}
    docs = ("/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/favicon-32x32.png", "/openapi.json")
    for path in (*docs, "/front/front.js", "/front/style.css", "/dashboard/", "/dashboard/static/main.js"):
        assert requests.get(compose.url + path, timeout=5).status_code == 200, path
    health = requests.get(f"{compose.url}/health", timeout=10)
    assert health.json()["functions"] == dict.fromkeys(FUNCTIONS, "ok")


def test_health_of_all_names_the_function_that_is_stopped(compose: Compose) -> None:
    compose("stop", "users")
    answer = requests.get(f"{compose.url}/health", timeout=15)
    assert answer.status_code == 503
    assert [error["field"] for error in answer.json()["errors"]] == ["users"]
    compose.up()
    assert requests.get(f"{compose.url}/health", timeout=15).status_code == 200


def test_the_dashboard_reads_as_metrics_reader_and_is_fresh_by_itself(compose: Compose, user: str) -> None:
    assert compose.post("/ingest/", metric(user)).ok
    sessions = f"{compose.url}/dashboard/api/sessions?user_id={user}&from=2000-01-01T00:00:00Z&to=2100-01-01T00:00:00Z"
    eventually(lambda: requests.get(sessions, timeout=5).json()["sessions"], 15)
    assert compose.psql("SELECT DISTINCT usename FROM pg_stat_activity WHERE usename = 'metrics_reader'")


def test_any_sql_tool_of_this_machine_reads_as_metrics_reader(compose: Compose) -> None:
    url = f"postgresql://metrics_reader:reader_password@127.0.0.1:{compose.database_port}/metrics_db?sslmode=disable"
    assert query(url, "SELECT count(*) >= 0 FROM metrics") == [[True]]
    with pytest.raises(DatabaseError, match="read-only"):
        query(url, "DELETE FROM users")


@pytest.mark.parametrize(
    ("role", "forbidden"),
    [
        (
            "metrics_writer",
            ("SELECT FROM metrics", "SELECT FROM users", "DELETE FROM users", "CREATE TABLE own (id int)"),
        ),
        ("metrics_reader", ("DELETE FROM metrics", "SELECT register_users('[]')", "SELECT refresh_summaries()")),
    ],
)
def test_each_role_may_do_no_more_than_it_needs(compose: Compose, role: str, forbidden: tuple[str, ...]) -> None:
    password = f"{role.removeprefix('metrics_')}_password"
    url = f"postgresql://{role}:{password}@127.0.0.1:{compose.database_port}/metrics_db?sslmode=disable"
    assert query(url, "SELECT current_user") == [[role]]
    for statement in forbidden:
        with pytest.raises(DatabaseError, match=r"permission denied|read-only"):
            query(url, statement)
    with pytest.raises(DatabaseError, match="password authentication failed"):
        query(url.replace(password, "wrong"), "SELECT 1")


def test_only_maintenance_logs_in_as_the_owner(compose: Compose, user: str) -> None:
    assert compose.post("/ingest/", metric(user)).ok
    assert requests.get(f"{compose.url}/dashboard/api/types", timeout=5).ok
    storing = "SELECT DISTINCT usename FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query ~ 'store_metrics'"
    assert compose.psql(storing) == "metrics_writer"
    for service in FUNCTIONS:
        (one, *_) = compose.containers(service)
        environment = dict(entry.partition("=")[::2] for entry in inspect(one, ".Config.Env"))
        assert environment["PGUSER"] == ("metrics_reader" if service == "dashboard" else "metrics_writer")


def test_the_command_runs_in_a_container_of_its_own(compose: Compose, user: str) -> None:
    assert "talked_time" in compose("run", "--rm", "cli", "type", "list")
    assert user in compose("run", "--rm", "cli", "user", "list")
    line = json.dumps(metric(user, value=7))
    command = compose.command("run", "--rm", "-T", "cli", "load", "-")
    environment = {**os.environ, **compose.environment}
    loaded = subprocess.run(command, input=line, text=True, capture_output=True, cwd=ROOT, env=environment, timeout=60)
    assert "stored      1" in loaded.stdout, loaded.stdout + loaded.stderr


def test_each_function_counts_its_work(compose: Compose, user: str) -> None:
    assert compose.post("/ingest/", metric(user)).ok
    counted = requests.get(f"{compose.url}/ingest/metrics", timeout=5).text
    assert "metrics_ingest_stored_total" in counted
    assert "metrics_ingest_database_up 1.0" in requests.get(f"{compose.url}/dashboard/metrics", timeout=5).text


def test_grafana_is_started_only_where_it_is_asked_for(compose: Compose) -> None:
    rendered = compose("--profile", "grafana", "config")
    assert "/etc/grafana/provisioning" in rendered
    assert "DB_READER: metrics_reader" in rendered
    assert not compose.containers("grafana")
    assert not compose.containers("cli")


@pytest.mark.parametrize("path", ["/nope", "/ingestx/", "/ingest_batches", "/users.php"])
def test_a_path_that_no_function_owns_is_not_found(compose: Compose, path: str) -> None:
    for answer in (requests.get(compose.url + path, timeout=5), compose.post(path, {})):
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["code"] == problem["errors"][0]["code"] == "not_found"
        assert problem["type"] == "urn:metrics-ingest:problem:not_found"
        assert set(problem) == {"type", "title", "status", "detail", "code", "errors"}


@pytest.mark.parametrize("chunked", [False, True])
def test_the_body_limit_is_one_for_gateway_and_functions(compose: Compose, chunked: bool) -> None:
    def post(size: int) -> requests.Response:
        body = b"[" + b" " * (size - 2) + b"]"
        data = iter([body[: size // 2], body[size // 2 :]]) if chunked else body
        headers = {"Content-Type": "application/json"}
        return requests.post(f"{compose.url}/ingest_batch/", data=data, headers=headers, timeout=30)

    assert post(10_485_760).json()["code"] == "empty_batch"  # the function has read it all
    too_large = post(10_485_761)
    assert too_large.status_code == 413
    assert too_large.headers["content-type"] == "application/problem+json"
    assert too_large.json()["code"] == "payload_too_large"


def test_a_functions_own_errors_pass_through_the_gateway(compose: Compose) -> None:
    answer = compose.post("/ingest/", metric(str(uuid4())))
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_user")
    assert requests.put(f"{compose.url}/ingest/", timeout=5).headers["allow"] == "GET, HEAD, POST"


def test_only_loopback_reaches_it(compose: Compose) -> None:
    bound = [
        address["HostIp"]
        for service in ("db", "gateway", *FUNCTIONS)
        for one in compose.containers(service)
        for addresses in inspect(one, ".NetworkSettings.Ports").values()
        for address in addresses or ()
    ]
    assert bound == ["127.0.0.1"] * 2  # the gateway and the database


def test_three_of_a_function_share_the_work_and_one_may_be_killed(compose: Compose, user: str) -> None:
    compose("up", "--detach", "--scale", "ingest=3")
    working = (
        "SELECT count(DISTINCT client_addr) FROM pg_stat_activity WHERE query LIKE 'SELECT public.store_metrics(%'"
    )

    def three_work() -> bool:
        assert all(compose.post("/ingest/", metric(user)).ok for _ in range(20))
        return int(compose.psql(working)) >= 3

    try:
        eventually(three_work, 20)
        docker("kill", compose.containers("ingest")[0])
        assert all(compose.post("/ingest/", metric(user)).ok for _ in range(60))
    finally:
        compose("up", "--detach", "--scale", "ingest=1")


def test_stopped_function_is_503_and_is_found_again_without_a_restart_of_the_gateway(compose: Compose) -> None:
    gateway = inspect(compose.containers("gateway")[0], ".State.StartedAt")
    compose("stop", "users")
    answer = compose.post("/users/", {"name": "Greg"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "overloaded"
    assert requests.get(f"{compose.url}/ingest/", timeout=5).ok
    compose.up()
    assert compose.post("/users/", {"name": "Greg"}).status_code == 201
    assert inspect(compose.containers("gateway")[0], ".State.StartedAt") == gateway


def test_the_functions_outlive_a_restart_of_the_database(compose: Compose, user: str) -> None:
    before = {name: inspect(compose.containers(name)[0], ".State.StartedAt") for name in FUNCTIONS}
    assert compose.post("/ingest/", metric(user)).ok
    compose("restart", "db")
    assert compose.post("/ingest/", metric(user)).ok
    docker("kill", compose.database)
    assert compose.post("/ingest/", metric(user)).json()["code"] == "store_unavailable"
    assert requests.get(f"{compose.url}/ingest/", timeout=5).ok  # alive, if not of use
    assert requests.get(f"{compose.url}/ingest/health", timeout=20).status_code == 503
    docker("start", compose.database)
    eventually(lambda: compose.post("/ingest/", metric(user)).ok, 30)
    assert {name: inspect(compose.containers(name)[0], ".State.StartedAt") for name in FUNCTIONS} == before


def test_it_stops_at_once_and_the_data_survives(compose: Compose, user: str) -> None:
    assert compose.post("/ingest/", metric(user)).ok
    start = time.monotonic()
    compose("down")
    assert time.monotonic() - start < 20  # nothing waited ten seconds to be killed, one after another
    compose.up()
    assert compose.psql(f"SELECT count(*) FROM metrics WHERE user_id = '{user}'") == "1"


def test_credentials_are_changed_in_one_place(compose: Compose) -> None:
    """Compose's own rendering shows where each of the three values arrives."""
    chosen = {"POSTGRES_USER": "somebody", "POSTGRES_PASSWORD": "p@ss/word:1", "POSTGRES_DB": "elsewhere"}
    rendered = compose("config", check=True, **chosen)
    assert "metrics_user" not in rendered
    assert "metrics_password" not in rendered
    for value in chosen.values():
        assert rendered.count(value) >= 4  # db, and what works as the owner: migrate, maintenance and cli
