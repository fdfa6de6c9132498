"""`docker compose up`: the flow of the first README, and what may happen to the containers meanwhile."""

import time
from uuid import uuid4

import pytest
import requests

from containers.engine import FUNCTIONS, Compose, docker, inspect, run
from support.metrics import metric
from support.processes import eventually

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
    assert requests.get(f"{compose.url}/{name}{slash}?a=b", timeout=5).json()["function"] == name
    assert requests.get(f"{compose.url}/{name}/health{slash}", timeout=5).json()["database"] == "ok"


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
    assert bound == ["127.0.0.1"]


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
        assert rendered.count(value) >= 5  # db, migrate and three functions
