"""deploy/deploy.sh, run with a stand-in for gcloud."""

import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from deploy.gcloud import HAVE, Deployment, Run, yaml
from support.processes import ROOT


@pytest.fixture
def deploy(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


IMAGE = "europe-west1-docker.pkg.dev/my-project/metrics/metrics-ingest:abc123"


def test_it_builds_then_migrates_then_deploys_and_prints_the_urls(deploy: Deployment) -> None:
    first = deploy()
    assert first.code == 0, first.errors
    order = [
        "services enable",
        "secrets create metrics-db-writer-password",
        "secrets create metrics-db-reader-password",
        "secrets add-iam-policy-binding metrics-db-password",
        "artifacts repositories create metrics",
        "builds submit",
        f"run jobs replace {first.manifests}/migrate.yaml",
        "run jobs execute metrics-migrate",
        f"run services replace {first.manifests}/dashboard.yaml",
        f"run services replace {first.manifests}/ingest.yaml",
        f"run services replace {first.manifests}/ingest_batch.yaml",
        f"run services replace {first.manifests}/users.yaml",
        f"run jobs replace {first.manifests}/maintain.yaml",
        "scheduler jobs create http metrics-maintain",
        f"run jobs replace {first.manifests}/summaries.yaml",
        "scheduler jobs create http metrics-summaries",
    ]
    found = [next(i for i, verb in enumerate(first.verbs) if verb.startswith(step)) for step in order]
    assert found == sorted(found)
    for name in ("metrics-dashboard", "metrics-ingest", "metrics-ingest-batch", "metrics-users"):
        assert f"https://{name}-abc-ew.a.run.app" in first.said


def test_every_command_names_the_project_and_runs_to_its_end(deploy: Deployment) -> None:
    commands = deploy().commands
    for command in commands:
        assert "--project=my-project" in command or command[:3] == ["projects", "add-iam-policy-binding", "my-project"]
        assert "--async" not in command
    execute = next(command for command in commands if command[:3] == ["run", "jobs", "execute"])
    assert "--wait" in execute


def test_a_second_run_makes_nothing_again(deploy: Deployment) -> None:
    """… and a version that is built already is not built again; what declares a state is applied again."""
    first, second = deploy(), deploy()
    assert second.code == 0, second.errors
    made = ("create", "builds submit")
    assert not [verb for verb in second.verbs if any(word in verb for word in made)]
    for job in ("maintain", "summaries"):
        assert f"scheduler jobs update http metrics-{job}" in second.verbs
        assert f"scheduler jobs create http metrics-{job}" not in second.verbs

    def declared(run: Run) -> list[str]:
        return [verb for verb in run.verbs if not any(word in verb for word in (*made, "scheduler"))]

    assert declared(first) == declared(second)


def test_a_rehearsal_prints_the_commands_of_a_first_run_and_runs_none(deploy: Deployment) -> None:
    rehearsal = deploy(DRY_RUN="1")
    assert rehearsal.code == 0, rehearsal.errors
    assert rehearsal.commands == []
    first = [["gcloud", *command] for command in deploy().commands]
    printed = [shlex.split(line) for line in rehearsal.said.splitlines() if line.startswith("gcloud")]
    assert [command for command in first if command in printed] == printed
    conditional = [
        shlex.split(line.removeprefix("if ! ").removeprefix("then "))
        for line in rehearsal.said.splitlines()
        if line.startswith(("if ! ", "then "))
    ]
    others = [command for command in first if command not in printed and command not in conditional]
    assert [command[1:3] for command in others] == [["secrets", "create"]] * 2  # which new_password does


def test_a_rehearsal_shows_what_is_made_only_where_it_is_missing(deploy: Deployment) -> None:
    lines = deploy(DRY_RUN="1").said.splitlines()
    conditions = [number for number, line in enumerate(lines) if line.startswith("if ! gcloud ")]
    assert conditions
    for number in conditions:
        assert " describe " in lines[number]
        assert lines[number + 1].startswith(("then gcloud ", "then exit 1 #", "then openssl rand "))
        assert lines[number + 2] == "fi"
    assert not [line for line in lines if line.startswith("gcloud") and (" create " in line or "builds submit" in line)]


def test_a_rehearsal_needs_no_gcloud_and_no_names(deploy: Deployment) -> None:
    rehearsal = deploy(DRY_RUN="1", PROJECT="", REGION="", INSTANCE="", PATH="/usr/bin:/bin")
    assert rehearsal.code == 0, rehearsal.errors
    assert "gcloud run services replace" in rehearsal.said


def test_a_failed_migration_leaves_the_running_version_alone(deploy: Deployment) -> None:
    failed = deploy(GCLOUD_FAILS="run jobs execute")
    assert failed.code != 0
    assert failed.verbs[-1].startswith("run jobs execute")


@pytest.mark.parametrize("missing", ["PROJECT", "REGION", "INSTANCE"])
def test_it_says_which_name_is_missing(deploy: Deployment, missing: str) -> None:
    refused = deploy(**{missing: ""})
    assert refused.code != 0
    assert missing in refused.errors
    assert refused.commands == []


@pytest.mark.parametrize(
    ("have", "missing"),
    [
        ("metrics-db-password metrics-read-keys", "metrics-api-keys"),
        ("metrics-api-keys metrics-read-keys", "metrics-db-password"),
        ("metrics-db-password metrics-api-keys", "metrics-read-keys"),
    ],
)
def test_a_secret_that_is_not_there_is_named_before_anything_is_built(
    deploy: Deployment, have: str, missing: str
) -> None:
    refused = deploy(GCLOUD_HAS=have)
    assert refused.code != 0
    assert missing in refused.errors
    assert not [verb for verb in refused.verbs if verb.startswith(("builds", "run"))]


@pytest.mark.parametrize(
    "settings",
    [
        {"MAX_INSTANCES": "10"},  # 10 * 1 * (2 * 4 + 1) = 90, of 100 - 10
        {"WORKERS": "2", "DB_CONNECTIONS": "190"},  # 10 * 2 * (2 * 4 + 1) = 180
    ],
)
def test_instances_that_the_database_has_connections_for_are_deployed(
    deploy: Deployment, settings: dict[str, str]
) -> None:
    run = deploy(DRY_RUN="1", **settings)
    assert run.code == 0, run.errors


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"MAX_INSTANCES": "11"}, "connections"),
        ({"WORKERS": "2", "DB_CONNECTIONS": "189"}, "connections"),
        ({"WRITE_LANES": "4"}, "connections"),
        ({"WORKERS": "2"}, "connections"),
        ({"MAX_INSTANCES": "many"}, "MAX_INSTANCES"),
    ],
)
def test_instances_that_the_database_has_no_connections_for_are_refused(
    deploy: Deployment, settings: dict[str, str], reason: str
) -> None:
    run = deploy(**settings)
    assert run.code != 0
    assert run.commands == []
    assert reason in run.errors


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("DB_NAME", value) for value in ("a|b", "a&b", 'a"b', "a\nb", "a\\b")),
        ("PREFIX", "m/y/;e touch $(pwd)/executed;s/x"),
        ("PREFIX", "$(touch executed)"),
        *(("MAX_INSTANCES", value) for value in ("010", "0x1", "9223372036854775808", "-1", "1e3", " 1")),
        *(("API_KEYS_SECRET", value) for value in ("a b", "*", "metrics-api-keys;id")),
        ("DB_PASSWORD_SECRET", "/etc/*"),
        ("MAINTENANCE_SCHEDULE", "every day"),
        ("MAINTENANCE_SCHEDULE", "* * * * * `id`"),
        ("SUMMARIES_SCHEDULE", "always"),
        ("READ_KEYS_SECRET", "a;b"),
        ("DB_READER", "a b"),
        ("DB_READER_PASSWORD_SECRET", "a b"),
        *(("IMAGE", value) for value in ("a b", "--help", "x\ny: z")),
        ("SERVICE_ACCOUNT", "a: b"),
        ("DB_HOST", "db; id"),
        ("MEMORY", "lots"),
        ("CPU", "1 # x"),
        ("INGRESS", "none"),
        ("TAG", "a/b"),
        ("REGION", "europe west1"),
    ],
)
def test_a_setting_that_is_malformed_is_refused_by_name_before_anything_is_written(
    deploy: Deployment, setting: str, value: str
) -> None:
    for rehearsal in ("", "1"):
        refused = deploy(DRY_RUN=rehearsal, **{setting: value})
        assert refused.code != 0, refused.said
        assert f"deploy: {setting}" in refused.errors
        assert refused.commands == []
        assert not refused.manifests.exists()
        assert not (ROOT / "executed").exists()


def test_a_directory_with_other_files_is_never_emptied(deploy: Deployment) -> None:
    own = deploy.directory / "manifests"
    own.mkdir()
    (own / "letter.yaml").write_text("mine")
    refused = deploy()
    assert refused.code != 0
    assert "MANIFESTS" in refused.errors
    assert [path.name for path in own.iterdir()] == ["letter.yaml"]


def test_an_earlier_runs_manifests_are_replaced(deploy: Deployment) -> None:
    first = deploy("manifests", IMAGE="example/metrics-ingest:1", DB_HOST="db.internal")
    assert (first.manifests / "jobs.yaml").exists()
    second = deploy()
    assert second.code == 0, second.errors
    assert not (second.manifests / "jobs.yaml").exists()


def test_spaces_stay_within_their_argument(deploy: Deployment) -> None:
    commands = deploy(MAINTENANCE_SCHEDULE="*/5 * * * *").commands
    assert "--schedule=*/5 * * * *" in next(c for c in commands if c[:3] == ["scheduler", "jobs", "create"])


def test_each_service_is_its_function_of_the_one_image(deploy: Deployment) -> None:
    run = deploy()
    names = {
        "ingest": "metrics-ingest",
        "ingest_batch": "metrics-ingest-batch",
        "ingest_otlp": "metrics-ingest-otlp",
        "users": "metrics-users",
    }
    for function, service in names.items():
        manifest = yaml(run.manifests / f"{function}.yaml")
        assert manifest["metadata"]["name"] == service
        (container,) = manifest["spec"]["template"]["spec"]["containers"]
        assert container["image"] == IMAGE
        environment = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}
        assert environment["FUNCTION_TARGET"] == function
        assert (ROOT / environment["FUNCTION_SOURCE"].removeprefix("/app/")).exists()
        assert environment["PGHOST"] == "/cloudsql/my-project:europe-west1:metrics"
        assert environment["PGPASSWORD"] == {"secretKeyRef": {"name": "metrics-db-writer-password", "key": "latest"}}
        assert "READ_KEYS" not in environment
        assert environment["API_KEYS"] == {"secretKeyRef": {"name": "metrics-api-keys", "key": "latest"}}
        assert environment["ALLOW_ANONYMOUS"] == "false"
        assert container["startupProbe"]["httpGet"]["path"] == container["livenessProbe"]["httpGet"]["path"] == "/"
        revision = manifest["spec"]["template"]["metadata"]["annotations"]
        assert revision["run.googleapis.com/cloudsql-instances"] == "my-project:europe-west1:metrics"
        assert revision["run.googleapis.com/startup-cpu-boost"] == "true"
        assert revision["autoscaling.knative.dev/maxScale"] == "10"
        account = manifest["spec"]["template"]["spec"]["serviceAccountName"]
        assert account == "metrics-ingest@my-project.iam.gserviceaccount.com"


def test_the_dashboard_has_keys_and_a_role_of_its_own(deploy: Deployment) -> None:
    secrets = "reader-password metrics-other-keys"
    run = deploy(
        DB_READER="metrics_reader",
        DB_READER_PASSWORD_SECRET="reader-password",
        READ_KEYS_SECRET="metrics-other-keys",
        GCLOUD_HAS=f"{HAVE} {secrets}",
    )
    assert run.code == 0, run.errors
    (container,) = yaml(run.manifests / "dashboard.yaml")["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}
    assert environment["FUNCTION_TARGET"] == "dashboard"
    assert environment["PGUSER"] == "metrics_reader"
    assert environment["PGPASSWORD"] == {"secretKeyRef": {"name": "reader-password", "key": "latest"}}
    assert environment["READ_KEYS"] == {"secretKeyRef": {"name": "metrics-other-keys", "key": "latest"}}
    assert "API_KEYS" not in environment
    for secret in secrets.split():
        assert f"secrets add-iam-policy-binding {secret}" in run.verbs
    ingest = (run.manifests / "ingest.yaml").read_text()
    assert "metrics_reader" not in ingest
    assert "other-keys" not in ingest


def test_each_part_logs_in_as_the_role_that_suffices(deploy: Deployment) -> None:
    run = deploy()
    assert run.code == 0, run.errors

    def environment(name: str, *path: str) -> dict[str, Any]:
        spec = yaml(run.manifests / f"{name}.yaml")["spec"]["template"]["spec"]
        for part in path:
            spec = spec[part]
        return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in spec["containers"][0]["env"]}

    def secret(name: str) -> dict[str, Any]:
        return {"secretKeyRef": {"name": name, "key": "latest"}}

    writer, reader = secret("metrics-db-writer-password"), secret("metrics-db-reader-password")
    for name in ("ingest", "ingest_batch", "ingest_otlp", "users"):
        assert (environment(name)["PGUSER"], environment(name)["PGPASSWORD"]) == ("metrics_writer", writer)
    assert (environment("dashboard")["PGUSER"], environment("dashboard")["PGPASSWORD"]) == ("metrics_reader", reader)
    for name in ("migrate", "maintain", "summaries"):
        job = environment(name, "template", "spec")
        assert (job["PGUSER"], job["PGPASSWORD"]) == ("metrics_user", secret("metrics-db-password"))
        given = (job.get("WRITER_PASSWORD"), job.get("READER_PASSWORD"))
        assert given == ((writer, reader) if name == "migrate" else (None, None))


def test_roles_of_ones_own_get_no_password_from_the_migration(deploy: Deployment) -> None:
    run = deploy(
        DB_USER="mine", DB_PASSWORD_SECRET="mine-password", DB_READER="mine", DB_READER_PASSWORD_SECRET="mine-password"
    )
    assert run.code == 0, run.errors
    assert "_PASSWORD\n" not in (run.manifests / "migrate.yaml").read_text().replace("PGPASSWORD\n", "")
    assert not [verb for verb in run.verbs if verb.startswith("secrets create")]


def test_undo_sends_requests_to_the_revision_before(deploy: Deployment) -> None:
    undone = deploy("undo", GCLOUD_REVISIONS="metrics-x-00002 metrics-x-00001")
    assert undone.code == 0, undone.errors
    updates = [command for command in undone.commands if "update-traffic" in command]
    assert [command[3] for command in updates] == [
        "metrics-dashboard", "metrics-ingest", "metrics-ingest-batch", "metrics-ingest-otlp", "metrics-users"
    ]  # fmt: skip
    assert all("--to-revisions=metrics-x-00001=100" in command for command in updates)
    only_one = deploy("undo", GCLOUD_REVISIONS="metrics-x-00001")
    assert only_one.code != 0
    assert "has no revision before the latest" in only_one.errors
    assert not [command for command in only_one.commands if "update-traffic" in command]


def test_destroy_lists_asks_and_spares_the_data(deploy: Deployment) -> None:
    refused = deploy("destroy", typed="yes\n")
    assert (refused.code != 0, refused.commands) == (True, [])
    assert "service metrics-ingest-batch" in refused.said
    assert "not confirmed, nothing was deleted" in refused.errors
    done = deploy("destroy", typed="metrics\n")
    assert done.code == 0, done.errors
    deleted = " ".join(done.verbs)
    for name in (
        "metrics-dashboard",
        "metrics-ingest-otlp",
        "metrics-migrate",
        "metrics-maintain",
        "metrics-summaries",
    ):
        assert f" delete {name}" in deleted
    assert "sql" not in deleted
    assert "secrets" not in deleted
    assert deploy("destroy", DRY_RUN="1").commands == []
    partly = deploy("destroy", typed="metrics\n", GCLOUD_FAILS="run services delete metrics-users")
    assert (partly.code != 0, len(partly.verbs)) == (True, len(done.verbs))


def test_the_jobs_run_commands_of_the_same_image_as_the_owner(deploy: Deployment) -> None:
    run = deploy(DB_OWNER="owner", DB_OWNER_PASSWORD_SECRET="owner-password", GCLOUD_HAS=f"{HAVE} owner-password")
    assert run.code == 0, run.errors
    commands = {
        "migrate": ["migrate"],
        "maintain": ["partitions", "maintain"],
        "summaries": ["summaries", "refresh"],
    }
    for name, arguments in commands.items():
        execution = yaml(run.manifests / f"{name}.yaml")["spec"]["template"]
        (container,) = execution["spec"]["template"]["spec"]["containers"]
        assert (container["image"], container["command"], container["args"]) == (IMAGE, ["metrics-ingest"], arguments)
        assert {"name": "PGUSER", "value": "owner"} in container["env"]
    assert 'value: "metrics_writer"' in (run.manifests / "ingest.yaml").read_text()


def test_with_iam_the_platform_authenticates_and_there_are_no_keys(deploy: Deployment) -> None:
    run = deploy(AUTH="iam", GCLOUD_HAS="metrics-db-password")
    assert run.code == 0, run.errors
    manifest = yaml(run.manifests / "ingest.yaml")
    assert manifest["metadata"]["annotations"]["run.googleapis.com/invoker-iam-disabled"] == "false"
    text = (run.manifests / "ingest.yaml").read_text()
    assert "metrics-api-keys" not in text
    assert "-keys" not in (run.manifests / "dashboard.yaml").read_text()
    assert {"name": "ALLOW_ANONYMOUS", "value": "true"} in manifest["spec"]["template"]["spec"]["containers"][0]["env"]


def test_any_knative_cluster_gets_the_same_services_and_its_own_kind_of_jobs(deploy: Deployment) -> None:
    nothing = {"PROJECT": "", "REGION": "", "INSTANCE": ""}
    run = deploy("manifests", IMAGE="example/metrics-ingest:1", DB_HOST="db.internal", **nothing)
    assert run.code == 0, run.errors
    assert run.commands == []
    read = pytest.importorskip("yaml").safe_load_all
    files = {path.stem: list(read(path.read_text())) for path in run.manifests.glob("*.yaml")}
    kinds = {name: [document["kind"] for document in documents] for name, documents in files.items()}
    services = {name: ["Service"] for name in ("dashboard", "ingest", "ingest_batch", "ingest_otlp", "users")}
    assert kinds == {**services, "jobs": ["Job", "CronJob", "CronJob"]}
    schedules = {job["metadata"]["name"]: job["spec"]["schedule"] for job in files["jobs"] if job["kind"] == "CronJob"}
    assert schedules == {"metrics-maintain": "17 3 * * *", "metrics-summaries": "*/5 * * * *"}
    assert files["ingest"][0]["spec"]["template"]["spec"]["serviceAccountName"] == "default"
    assert "${" not in "".join(path.read_text() for path in run.manifests.glob("*.yaml")).replace("${…}", "")


def unknown_to(schema: dict[str, Any], value: Any, path: str = "") -> list[str]:
    """The paths in `value` that an OpenAPI schema of Kubernetes does not know, or knows as another type."""
    types: dict[str, Any] = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    if schema.get("x-kubernetes-int-or-string"):
        return [] if isinstance(value, int | str) else [path]
    if not isinstance(value, types[schema["type"]]):
        return [f"{path} is no {schema['type']}"]
    if isinstance(value, list):
        return [found for i, item in enumerate(value) for found in unknown_to(schema["items"], item, f"{path}[{i}]")]
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return []
    found = []
    for name, item in value.items():
        known = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
        found += [f"{path}.{name}"] if known is None else unknown_to(known, item, f"{path}.{name}")
    return found + [f"{path}.{name} is missing" for name in schema.get("required", ()) if name not in value]


def test_the_services_are_valid_by_knatives_own_schema(deploy: Deployment) -> None:
    """KNATIVE_SERVICE_CRD names the file config/core/300-resources/service.yaml of a Knative Serving release."""
    if "KNATIVE_SERVICE_CRD" not in os.environ:
        pytest.skip("KNATIVE_SERVICE_CRD is not set")
    definition = yaml(Path(os.environ["KNATIVE_SERVICE_CRD"]))
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    assert unknown_to(schema, {"spec": {"template": {"spec": {"containers": [{"imagee": "x"}]}}}})
    run = deploy()
    for name in ("dashboard", "ingest", "ingest_batch", "ingest_otlp", "users"):
        assert unknown_to(schema, yaml(run.manifests / f"{name}.yaml")) == []


def test_make_deploy_passes_its_variables_on(deploy: Deployment) -> None:
    run = deploy.run("make", "-sf", "deploy/deploy.mk", "deploy", "DRY_RUN=1", "PROJECT=another", "MAX_INSTANCES=3")
    assert run.code == 0, run.errors
    assert "--project=another" in run.said
    assert "3 instances" in run.errors
