"""Lists: pages that neither skip nor repeat, order, search, and what a parameter may be."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from dashboard.conftest import Board
from dashboard.data import DAY, FORMULA, HOSTILE, get, read
from support.problems import check_problem
from support.processes import Server

WEEK = {"start": DAY.isoformat(), "end": (DAY + timedelta(days=7)).isoformat()}
ORDERS = [sign + name for name in ("name", "talk_time", "sessions", "sentiment", "metrics", "last_seen", "value")
          for sign in ("", "-")]  # fmt: skip


def pages(board: Board, name: str, key: str, **parameters: Any) -> list[Any]:
    """All items, page by page."""
    found: list[Any] = []
    after: dict[str, str] = {}
    while True:
        reply = read(board.server, name, **parameters, **after)
        found += reply[key]
        assert len(reply[key]) <= parameters["limit"]
        assert len(found) < 100, "the pages never end"
        if reply["next"] is None:
            return found
        after = {"after": reply["next"]}


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
@pytest.mark.parametrize("order", ORDERS)
def test_pages_of_users_are_the_whole_list(board: Board, order: str, limit: int) -> None:
    whole = read(board.server, "users", **WEEK, order=order, limit=1000, metric_type="talked_time")["users"]
    assert len(whole) == 7
    assert pages(board, "users", "users", **WEEK, order=order, limit=limit, metric_type="talked_time") == whole


def test_users_are_in_the_order_that_was_asked_for(board: Board) -> None:
    figures = {"talk_time": "talked_time_s", "sessions": "sessions", "sentiment": "mean_sentiment",
               "metrics": "metrics", "last_seen": "last_seen_at", "value": "value"}  # fmt: skip
    for order, column in figures.items():
        for sign in ("", "-"):
            users = read(board.server, "users", **WEEK, order=sign + order, metric_type="reaction_time")["users"]
            values = [user[column] for user in users]
            assert values == sorted(values, reverse=sign == "-"), order
    names = [user["name"].lower() for user in read(board.server, "users", **WEEK, order="name")["users"]]
    assert names == sorted(names)
    assert names[::-1] == [user["name"].lower() for user in read(board.server, "users", **WEEK, order="-name")["users"]]


def test_missing_figure_is_last_in_both_directions_and_on_its_page(
    database_url: str, serve: Callable[..., Server]
) -> None:
    """Users without a sentiment, on a day of which nobody else is asked for."""
    board = Board(serve("dashboard", database_url), database_url)
    user = "00000000-0000-4000-8000-0000000000{}"
    for number in range(10, 14):
        board.sql("INSERT INTO users (user_id, name) VALUES (CAST(:u AS uuid), 'Late')", u=user.format(number))
        kind = "voice_sentiment" if number < 12 else "talked_time"
        board.sql(
            "INSERT INTO user_day_rollup SELECT CAST(:u AS uuid), '2025-01-01', :t, 1, CAST(:v AS float8),"
            " 1, 1, 1, now(), 1, now(), 1, CAST(:v AS float8)::text::numeric",
            u=user.format(number), t=kind, v=number / 20,
        )  # fmt: skip
    bounds = {"start": "2025-01-01T00:00:00Z", "end": "2025-01-02T00:00:00Z"}
    for order, numbers in (("sentiment", [10, 11]), ("-sentiment", [11, 10])):
        users = [item["user_id"] for item in pages(board, "users", "users", **bounds, order=order, limit=1)]
        assert users == [user.format(number) for number in (*numbers, 12, 13)]


@pytest.mark.parametrize(("search", "names"), [
    ("ADA", ["Ada Mensah", "ada lovelace"]), ("lefèvre", ["Benoît Lefèvre"]), ("<img", [HOSTILE]), ("%", []), ("_", []),
    ("'", []), ("hyperlink", [FORMULA]), ("van dijk", ["Zoë van Dijk"]),
])  # fmt: skip
def test_users_are_found_by_a_part_of_their_name(board: Board, search: str, names: list[str]) -> None:
    reply = read(board.server, "users", **WEEK, search=search)
    assert sorted(user["name"] for user in reply["users"]) == sorted(names)
    assert reply["total"] in (len(names), None)


def test_users_are_found_by_the_beginning_of_their_id(board: Board) -> None:
    user = read(board.server, "users", **WEEK)["users"][3]
    for part in (user["user_id"], user["user_id"][:9].upper()):
        assert [found["name"] for found in read(board.server, "users", **WEEK, search=part)["users"]] == [user["name"]]


def test_pages_of_sessions_and_refusals_are_the_whole_list(board: Board) -> None:
    user = board.sql("SELECT user_id FROM sessions GROUP BY 1 ORDER BY count(*) DESC LIMIT 1")[0][0]
    whole = read(board.server, "sessions", **WEEK, user_id=user)["sessions"]
    assert len(whole) >= 3
    assert pages(board, "sessions", "sessions", **WEEK, user_id=user, limit=1) == whole
    rejected = read(board.server, "rejected", **WEEK)["rejected"]
    assert len(rejected) == 12
    for limit in (1, 5, 12):
        assert pages(board, "rejected", "rejected", **WEEK, limit=limit) == rejected


def test_what_is_added_meanwhile_moves_no_page(board: Board) -> None:
    """The newest come first: a refusal that arrives between two pages is on neither, and pushes nothing on."""
    first = read(board.server, "rejected", **WEEK, limit=4)
    board.sql("INSERT INTO rejected_metrics (received_at, route, codes, payload, payload_bytes)"
              " VALUES (CAST(:at AS timestamptz), 'ingest', '{unknown_user}', '', 0)",
              at=DAY + timedelta(days=6))  # fmt: skip
    second = read(board.server, "rejected", **WEEK, limit=4, after=first["next"])
    board.sql("DELETE FROM rejected_metrics WHERE payload_bytes = 0")
    assert first["rejected"] + second["rejected"] == read(board.server, "rejected", **WEEK)["rejected"][:8]


def test_refusals_are_chosen_by_code_and_their_payload_is_text_or_base64(board: Board) -> None:
    assert len(read(board.server, "rejected", code="value_out_of_range", **WEEK)["rejected"]) == 4
    assert len(read(board.server, "rejected", code="unknown_user")["rejected"]) == 8
    assert read(board.server, "rejected", code="no_such_code")["rejected"] == []
    payloads = {(row["payload_encoding"], row["payload"][:5], row["payload_cut"])
                for row in read(board.server, "rejected", code="malformed_json")["rejected"]}  # fmt: skip
    assert payloads == {("base64", "/wA=", True)}


WRONG: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("overview", {"from": "2024-08-08"}, "invalid_timestamp", "from"),
    ("overview", {"to": "2024-08-08T12:00:00"}, "invalid_timestamp", "to"),
    ("overview", {"to": "1723118400"}, "invalid_timestamp", "to"),
    ("overview", {"from": "2024-13-08T12:00:00Z"}, "invalid_timestamp", "from"),
    ("overview", {"from": "1999-12-31T23:59:59Z"}, "timestamp_out_of_range", "from"),
    ("overview", {"from": "2024-08-08T00:00:00Z", "to": "2024-08-08T00:00:00Z"}, "invalid_field", "from"),
    ("overview", {"form": "2024-08-08T00:00:00Z"}, "unknown_field", "form"),
    ("overview", {"format": "xml"}, "invalid_field", "format"),
    ("series", {}, "missing_field", "metric_type"),
    ("series", {"metric_type": "Talked"}, "invalid_metric_type", "metric_type"),
    ("series", {"metric_type": "x'; DROP TABLE users; --"}, "invalid_metric_type", "metric_type"),
    ("series", {"metric_type": "no_such_type"}, "unknown_metric_type", "metric_type"),
    ("series", {"metric_type": "talked_time", "step": "minute"}, "invalid_field", "step"),
    ("series", {"metric_type": "talked_time", "step": "5min"}, "invalid_field", "step"),
    ("series", {"metric_type": "talked_time", "from": "2010-01-01T00:00:00Z"}, "invalid_field", "step"),
    ("series", {"metric_type": "talked_time", "user_id": "x", "step": "day"}, "invalid_uuid", "user_id"),
    ("series", {"metric_type": "talked_time", "user_id": "0" * 32}, "invalid_field", "step"),
    ("users", {"order": "email"}, "invalid_field", "order"),
    ("users", {"limit": "0"}, "invalid_field", "limit"),
    ("users", {"limit": "1001"}, "invalid_field", "limit"),
    ("users", {"limit": "ten"}, "invalid_field", "limit"),
    ("users", {"limit": "-1"}, "invalid_field", "limit"),
    ("users", {"search": "x" * 201}, "invalid_field", "search"),
    ("users", {"search": "\0"}, "invalid_field", "search"),
    ("users", {"after": "nonsense"}, "invalid_field", "after"),
    ("users", {"after": "WyItbGFzdF9zZWVuIiwgIngiLCAiIiwgIngiXQ=="}, "invalid_field", "after"),
    ("users", {"metric_type": "no_such_type"}, "unknown_metric_type", "metric_type"),
    ("sessions", {}, "missing_field", "user_id"),
    ("sessions", {"user_id": "greg"}, "invalid_uuid", "user_id"),
    ("sessions", {"user_id": "0" * 32}, "unknown_user", "user_id"),
    ("session", {"user_id": "0" * 32}, "missing_field", "session_id"),
    ("session", {"user_id": "0" * 32, "session_id": "0" * 32}, "unknown_user", "user_id"),
    ("rejected", {"code": "DROP TABLE"}, "invalid_field", "code"),
    ("rejected", {"after": "e30="}, "invalid_field", "after"),
    ("types", {"from": "2024-08-08T00:00:00Z"}, "unknown_field", "from"),
]


@pytest.mark.parametrize(("name", "parameters", "code", "field"), WRONG)
def test_wrong_parameter_is_refused_by_name(
    board: Board, name: str, parameters: dict[str, Any], code: str, field: str | None
) -> None:
    problem = check_problem(get(board.server, name, **parameters), code, field)
    assert len(problem["detail"]) > 20


def test_session_that_the_user_has_not_is_not_found(board: Board) -> None:
    user = board.sql("SELECT user_id FROM users LIMIT 1")[0][0]
    check_problem(get(board.server, "session", user_id=user, session_id="1" * 32), "not_found", "session_id")


def test_cursor_of_another_order_is_refused(board: Board) -> None:
    after = read(board.server, "users", **WEEK, limit=1, order="name")["next"]
    check_problem(get(board.server, "users", **WEEK, limit=1, order="-name", after=after), "invalid_field", "after")
    check_problem(get(board.server, "rejected", after=after), "invalid_field", "after")


def test_parameter_given_twice_or_not_utf_8_is_refused(board: Board) -> None:
    import requests

    for query in ("limit=1&limit=2", "search=%ff", "&".join("x=1" for _ in range(30))):
        answer = requests.get(f"{board.server.url}/dashboard/api/users?{query}", timeout=10)
        assert answer.status_code == 422, query


def test_offset_whose_plus_was_not_encoded_is_read(board: Board) -> None:
    import requests

    url = f"{board.server.url}/dashboard/api/overview?from=2024-08-05T02:00:00+02:00&to=2024-08-08T00:00:00Z"
    assert requests.get(url, timeout=10).json()["from"] == "2024-08-05T00:00:00Z"


def test_range_can_be_years(board: Board) -> None:
    bounds = {"start": "2000-01-01T00:00:00Z", "end": "2100-01-01T00:00:00Z"}
    assert len(read(board.server, "series", metric_type="talked_time", step="day", **bounds)["points"]) >= 5
    three = {"start": "2022-01-01T00:00:00Z", "end": "2025-01-01T00:00:00Z"}
    assert len(read(board.server, "series", metric_type="talked_time", step="hour", **three)["points"]) >= 20
    assert read(board.server, "overview", **bounds)["metrics"] > 500


def test_default_range_is_the_last_seven_days_to_the_end_of_this_hour(board: Board) -> None:
    from datetime import UTC, datetime

    reply = read(board.server, "overview")
    start, end = (datetime.fromisoformat(reply[name]) for name in ("from", "to"))
    assert end - start == timedelta(days=7)
    assert timedelta(0) <= end - datetime.now(UTC) <= timedelta(hours=1)
