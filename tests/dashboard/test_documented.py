"""Replies of the API are what docs/openapi.json says."""

import json
from typing import Any

import pytest

from dashboard.conftest import Board
from dashboard.data import get
from metrics_ingest.dashboard.api import ENDPOINTS
from support.processes import ROOT

DOCUMENT: dict[str, Any] = json.loads((ROOT / "docs" / "openapi.json").read_text())
jsonschema = pytest.importorskip("jsonschema")  # it comes with openapi-spec-validator, and has no types
BOUNDS = {"start": "2024-08-01T00:00:00Z", "end": "2024-09-01T00:00:00Z"}


def check(name: str, reply: Any) -> None:
    content = DOCUMENT["paths"][f"/dashboard/api/{name}"]["get"]["responses"]["200"]["content"]
    schema = {**content["application/json"]["schema"], "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(reply)


@pytest.mark.parametrize("bounds", [BOUNDS, {}], ids=["filled", "empty"])
@pytest.mark.parametrize("name", ENDPOINTS)
def test_replies_have_the_documented_form(board: Board, name: str, bounds: dict[str, str]) -> None:
    user, session = board.sql("SELECT user_id, session_id FROM sessions LIMIT 1")[0]
    needed: dict[str, dict[str, Any]] = {
        "series": {"metric_type": "microphone_used"},
        "sessions": {"user_id": user},
        "session": {"user_id": user, "session_id": session},
    }
    ranged = bounds if "from" in ENDPOINTS[name].parameters else {}
    answer = get(board.server, name, **needed.get(name, {}), **ranged)
    assert answer.status_code == 200, answer.text
    check(name, answer.json())


def test_a_reply_of_another_form_is_noticed(board: Board) -> None:
    reply = get(board.server, "overview", **BOUNDS).json()
    with pytest.raises(jsonschema.ValidationError):
        check("overview", {**reply, "users": "many"})
    with pytest.raises(jsonschema.ValidationError):
        check("overview", {**reply, "new": 1})


def test_documented_orders_and_steps_are_those_that_exist() -> None:
    from metrics_ingest.dashboard import series, users

    def enum(path: str, name: str) -> list[str]:
        parameters = DOCUMENT["paths"][f"/dashboard/api/{path}"]["get"]["parameters"]
        resolved = [
            DOCUMENT["components"]["parameters"][one["$ref"].split("/")[-1]] if "$ref" in one else one
            for one in parameters
        ]
        (found,) = [one["schema"]["enum"] for one in resolved if one["name"] == name]
        return list(found)

    assert set(enum("users", "order")) == set(users.ORDERS)
    assert set(enum("series", "step")) == set(enum("activity", "step")) == set(series.STEPS)
