"""Refusals say what to do instead."""

import subprocess
from typing import Any
from uuid import uuid4

import pytest
import requests

from support.metrics import metric as a_metric
from support.processes import Stack


def detail(answer: requests.Response, status: int = 422) -> str:
    assert answer.status_code == status, answer.text
    assert len(answer.json()["errors"]) == 1
    return str(answer.json()["errors"][0]["detail"])


def test_unknown_user_is_told_where_users_are_registered(stack: Stack) -> None:
    said = detail(stack.send(a_metric(str(uuid4()))))
    assert "POST /users/ registers a user" in said


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("talk_time", "talked_time"),
        ("sentiment", "voice_sentiment"),
        ("speaker", "speaker_used"),
        ("talkedtime", "talked_time"),
    ],
)
def test_unknown_type_is_told_the_names_that_are_alike(
    stack: Stack, metric: dict[str, Any], sent: str, meant: str
) -> None:
    said = detail(stack.send({**metric, "metric_type": sent}))
    assert f"is it {meant}" in said
    assert f"`metrics-ingest type add {sent}` registers it" in said


def test_type_like_no_other_is_told_how_to_add_it(stack: Stack, metric: dict[str, Any]) -> None:
    said = detail(stack.send({**metric, "metric_type": "zebra_count"}))
    assert said == "metric type zebra_count is not registered; `metrics-ingest type add zebra_count` registers it"


def test_array_for_one_metric_is_told_the_other_function(stack: Stack, metric: dict[str, Any]) -> None:
    assert "to /ingest_batch/" in detail(stack.send([metric]))


def test_one_metric_for_many_is_told_once_that_an_array_is_expected(stack: Stack, metric: dict[str, Any]) -> None:
    said = detail(stack.send_batch(metric))
    assert "send an array of metrics" in said
    assert "/ingest/" in said


@pytest.mark.parametrize("name", ["ingest", "ingest_batch", "users"])
def test_get_with_a_body_is_told_to_post(stack: Stack, name: str) -> None:
    url = f"{getattr(stack, name).url}/{name}/"
    answer = requests.get(url, json={}, timeout=10)
    assert "send a POST" in detail(answer, 405)
    assert answer.headers["Allow"] == "GET, HEAD, POST"
    curl = subprocess.run(["curl", "-s", "-X", "GET", url, "-d", "{}"], capture_output=True, text=True, check=True)
    assert "send a POST" in curl.stdout
    assert requests.get(url, timeout=10).json()["status"] == "ok"
