"""`api/rejected`: what the functions refused and kept, the newest first."""

import base64
from typing import Any
from uuid import UUID

from metrics_ingest.dashboard.parameters import EARLIEST, LATEST, Parameters, cursor, instant
from metrics_ingest.dashboard.reader import Row, Session

PARAMETERS = ("code", "from", "to", "limit", "after")
EVER = LATEST - EARLIEST
LIMIT, MOST, MOST_CSV = 50, 1_000, 10_000

REJECTED = """
    SELECT rejected_id, received_at, route, key_name, codes, detail, metric_id, payload, payload_bytes
    FROM rejected_metrics
    WHERE received_at >= CAST(:start AS timestamptz) AND received_at < CAST(:end AS timestamptz)
      AND (CAST(:code AS text) IS NULL OR :code = ANY (codes))
      AND (CAST(:after_id AS uuid) IS NULL
           OR (received_at, rejected_id) < (CAST(:after_at AS timestamptz), CAST(:after_id AS uuid)))
    ORDER BY received_at DESC, rejected_id DESC
    LIMIT :limit
"""


def plan(parameters: Parameters) -> Any:
    """Return what reads one page of rejected metrics."""
    as_csv = parameters.choice("format", ("json", "csv"), "json") == "csv"
    code = parameters.code()
    wanted = parameters.range(EVER)
    limit = parameters.integer("limit", MOST_CSV if as_csv else LIMIT, 1, MOST_CSV if as_csv else MOST)
    after_at, after_id = parameters.after("rejected", (instant, UUID)) or (None, None)

    def read(session: Session) -> Row:
        rows = session.rows(
            REJECTED,
            code=code,
            start=wanted.start,
            end=wanted.end,
            limit=limit + 1,
            after_at=after_at,
            after_id=after_id,
        )
        last = rows[limit - 1 : limit]
        more = [cursor("rejected", row["received_at"].isoformat(), row["rejected_id"]) for row in last]
        return {
            "from": wanted.start,
            "to": wanted.end,
            "rejected": [_legible(row) for row in rows[:limit]],
            "next": more[0] if len(rows) > limit else None,
        }

    return read


def _legible(row: Row) -> Row:
    """The payload as text where it is UTF-8, else as base64; `payload_encoding` says which."""
    payload: bytes = row["payload"]
    try:
        text, encoding = payload.decode(), "utf-8"
    except UnicodeDecodeError:
        text, encoding = base64.b64encode(payload).decode(), "base64"
    return {**row, "payload": text, "payload_encoding": encoding, "payload_cut": row["payload_bytes"] > len(payload)}
