"""Data for the dashboard's tests: stored by SQL, for figures that can be computed from the raw metrics."""

from datetime import UTC, datetime
from typing import Any

import requests

from support.processes import Server, query

DAY = datetime(2024, 8, 5, tzinfo=UTC)
HOSTILE = "<img src=x onerror=alert(1)>"
FORMULA = '=HYPERLINK("http://example.com")'
NAMES = (HOSTILE, FORMULA, "Ada Mensah", "ada lovelace", "Benoît Lefèvre", "Zoë van Dijk", "Mei Lin")

IN_RANGE, IN_ALL = "782", "810"  # metrics in browser.RANGE, and in all

# Seven users, each with a session a day on five days, half of them over an hour's or a day's end; 30 metrics each.
FILL = (
    "INSERT INTO metric_types (metric_type, kind, unit, aggregation) VALUES ('reaction_time', 'gauge', 'ms', 'mean')",
    """
    INSERT INTO sessions (user_id, session_id, start_time)
    SELECT user_id, md5(user_id::text || day)::uuid,
           CAST(:day AS timestamptz) + day * interval '1 day' + number * interval '205 minutes' + interval '100 seconds'
    FROM (SELECT user_id, row_number() OVER (ORDER BY user_id) AS number FROM users) AS u, generate_series(0, 4) AS day
    WHERE (day + number) % 4 <> 0
    """,
    """
    INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value, received_at)
    SELECT user_id, start_time + n * interval '163 seconds', md5(session_id::text || n)::uuid, session_id, kind,
           CASE kind WHEN 'talked_time' THEN (n * 37 % 100) / 4.0 WHEN 'voice_sentiment' THEN (n * 13 % 21 - 10) / 10.0
                     WHEN 'reaction_time' THEN n * 71 % 900 ELSE (n * 5 % 7 < 4)::int END,
           start_time + n * interval '163 seconds' + (n * 31 % 50) * interval '120 milliseconds'
    FROM (SELECT *, (ARRAY['talked_time', 'microphone_used', 'speaker_used', 'voice_sentiment', 'reaction_time'])
                    [1 + n % 5] AS kind
          FROM sessions, generate_series(0, 29) AS n) AS metric
    """,
    """
    INSERT INTO rejected_metrics (received_at, route, key_name, codes, detail, payload, payload_bytes)
    SELECT CAST(:day AS timestamptz) + n * interval '7 hours', 'ingest_batch', 'web',
           CASE n % 3 WHEN 0 THEN ARRAY['unknown_user'] WHEN 1 THEN ARRAY['value_out_of_range', 'unknown_user']
                ELSE ARRAY['malformed_json'] END,
           'detail ' || n,
           CASE n % 3 WHEN 2 THEN '\\xff00'::bytea ELSE convert_to('{"n": ' || n || '}', 'UTF8') END, 9000
    FROM generate_series(1, 12) AS n
    """,
    "SELECT refresh_summaries()",
    "ANALYZE",
)


def fill(url: str) -> None:
    """Store it all and refresh the summaries."""
    for number, name in enumerate(NAMES):
        query(url, "INSERT INTO users (user_id, name) VALUES (md5(:n)::uuid, :name)", n=f"user {number}", name=name)
    for sql in FILL:
        query(url, sql, **({"day": DAY} if ":day" in sql else {}))


def get(server: Server, name: str, key: str | None = None, **parameters: Any) -> requests.Response:
    """GET an endpoint of the API; `start` and `end` are sent as from and to."""
    bounds = {"start": "from", "end": "to"}
    sent = {bounds.get(parameter, parameter): value for parameter, value in parameters.items()}
    headers = {"X-API-Key": key} if key else {}
    return requests.get(f"{server.url}/dashboard/api/{name}", params=sent, headers=headers, timeout=20)


def read(server: Server, name: str, **parameters: Any) -> Any:
    """The JSON of an endpoint that answers 200."""
    answer = get(server, name, **parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()
