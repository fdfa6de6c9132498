"""What only the database knows about ingestion, for Prometheus: part of the dashboard's `GET …/metrics`."""

from datetime import datetime

from metrics_ingest.dashboard.overview import freshness
from metrics_ingest.dashboard.reader import Row, Session, reader
from metrics_ingest.errors import Overloaded, StoreUnavailable

KEEP_S = 5.0  # a scrape may find the figures of one so long ago: anybody may ask
MOST_ROWS = 100_000  # of a default partition are counted

PARTITIONS = f"""
    SELECT parent AS table,
           COALESCE(min(ahead) FILTER (WHERE partition IS NULL), 13) - 1 AS months_ahead,
           CASE parent
               WHEN 'metrics' THEN (SELECT count(*) FROM (SELECT FROM metrics_default LIMIT {MOST_ROWS}) AS few)
               ELSE (SELECT count(*) FROM (SELECT FROM rejected_metrics_default LIMIT {MOST_ROWS}) AS few)
           END AS rows
    FROM (VALUES ('metrics'), ('rejected_metrics')) AS tables (parent)
    CROSS JOIN generate_series(0, 12) AS ahead
    LEFT JOIN LATERAL (
        SELECT inhrelid AS partition FROM pg_inherits
        WHERE inhparent = to_regclass(parent)
          AND inhrelid = to_regclass(
              parent || to_char(date_trunc('month', now()) + make_interval(months => ahead), '"_p"YYYY_MM'))
    ) AS found ON true
    GROUP BY parent
"""


async def exposition() -> bytes:
    """Return the gauges in Prometheus' text format; of a database that does not answer, only that it does not."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()

    def gauge(name: str, description: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"metrics_ingest_{name}", description, labels, registry=registry)

    up = gauge("database_up", "Whether the database answers the dashboard: 1 or 0.")
    try:
        state, partitions = await reader().read(
            lambda session: session.remember("database state", lambda: _state(session), KEEP_S)
        )
    except (StoreUnavailable, Overloaded):
        up.set(0)
        return generate_latest(registry)
    up.set(1)
    times = {
        "last_received_timestamp_seconds": ("When the last metric was received.", state["last_received_at"]),
        "summaries_refreshed_timestamp_seconds": ("When the summaries were refreshed.", state["refreshed_at"]),
    }
    for name, (description, moment) in times.items():
        if isinstance(moment, datetime):  # else there was none yet
            gauge(name, description).set(moment.timestamp())
    rows = gauge("default_partition_rows", f"Rows in the default partition; {MOST_ROWS} are that or more.", ("table",))
    ahead = gauge("months_ahead", "Months after this one that have a partition; -1 without one of this.", ("table",))
    for row in partitions:
        rows.labels(row["table"]).set(row["rows"])
        ahead.labels(row["table"]).set(row["months_ahead"])
    return generate_latest(registry)


def _state(session: Session) -> tuple[Row, list[Row]]:
    return freshness(session), session.rows(PARTITIONS)
