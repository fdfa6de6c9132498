"""`api/users`: the users with a metric on the days of a range, sorted, searched and paged."""

from typing import Any
from uuid import UUID

from metrics_ingest.dashboard.parameters import DAY, Parameters, cursor
from metrics_ingest.dashboard.reader import Row, Session
from metrics_ingest.dashboard.types import find

PARAMETERS = ("from", "to", "metric_type", "order", "search", "limit", "after")
FIGURES = ("talk_time", "sessions", "sentiment", "metrics", "last_seen", "value")
ORDERS = ("name", "-name", *FIGURES, *(f"-{figure}" for figure in FIGURES))
LIMIT, MOST, MOST_CSV = 50, 1_000, 10_000

# Users come by whole UTC days, which is what user_day_rollup has. A missing figure sorts last in both directions.
USERS = """
    WITH day AS (
        SELECT user_id, metric_type, metric_count, exact_total, lowest, highest, true_count, last_at, last_value
        FROM user_day_rollup
        WHERE day >= CAST(:first_day AS date) AND day < CAST(:end_day AS date)
    ),
    activity AS (
        SELECT user_id, sum(metric_count)::bigint AS metrics, max(last_at) AS last_seen_at,
               nearest_float8(sum(exact_total) FILTER (WHERE metric_type = 'talked_time')) AS talked_time_s,
               nearest_float8(sum(exact_total) FILTER (WHERE metric_type = 'voice_sentiment')
                   / sum(metric_count) FILTER (WHERE metric_type = 'voice_sentiment')) AS mean_sentiment,
               bucket_value(:aggregation,
                   sum(metric_count) FILTER (WHERE metric_type = :metric_type)::bigint,
                   nearest_float8(sum(exact_total) FILTER (WHERE metric_type = :metric_type)),
                   min(lowest) FILTER (WHERE metric_type = :metric_type),
                   max(highest) FILTER (WHERE metric_type = :metric_type),
                   sum(true_count) FILTER (WHERE metric_type = :metric_type)::bigint,
                   (array_agg(last_value ORDER BY last_at DESC) FILTER (WHERE metric_type = :metric_type))[1],
                   sum(exact_total) FILTER (WHERE metric_type = :metric_type)) AS value
        FROM day
        GROUP BY user_id
        HAVING CAST(:metric_type AS text) IS NULL OR bool_or(metric_type = :metric_type)
    ),
    begun AS (
        SELECT user_id, count(*) AS sessions FROM sessions
        WHERE start_time >= CAST(:first_day AS timestamptz) AND start_time < CAST(:end_day AS timestamptz)
        GROUP BY user_id
    ),
    figures AS (
        SELECT users.user_id, name, COALESCE(sessions, 0) AS sessions, metrics, talked_time_s, mean_sentiment,
               value, last_seen_at
        FROM activity JOIN users USING (user_id) LEFT JOIN begun USING (user_id)
        WHERE CAST(:search AS text) IS NULL
           OR strpos(lower(name), lower(:search)) > 0 OR starts_with(user_id::text, lower(:search))
    ),
    sorted AS (
        SELECT *, CASE WHEN :figure = 'name' THEN lower(name) ELSE '' END AS sort_text,
               COALESCE(CAST(:sign AS float8) * CASE :figure
                   WHEN 'talk_time' THEN talked_time_s
                   WHEN 'sessions' THEN sessions
                   WHEN 'sentiment' THEN mean_sentiment
                   WHEN 'metrics' THEN metrics
                   WHEN 'last_seen' THEN extract(epoch FROM last_seen_at)::float8
                   WHEN 'value' THEN value
                   WHEN 'name' THEN 0
               END, 'infinity') AS sort_number
        FROM figures
    )
    SELECT *, (SELECT count(*) FROM figures) AS total
    FROM sorted
    WHERE CAST(:after_id AS uuid) IS NULL
       OR (sort_number, sort_text, user_id)
          {beyond} (CAST(:after_number AS float8), CAST(:after_text AS text), CAST(:after_id AS uuid))
    ORDER BY sort_number {direction}, sort_text {direction}, user_id {direction}
    LIMIT :limit
"""
ASCENDING = USERS.format(beyond=">", direction="ASC")
DESCENDING = USERS.format(beyond="<", direction="DESC")  # for names alone: figures are negated instead


def plan(parameters: Parameters) -> Any:
    """Return what reads one page of users."""
    as_csv = parameters.choice("format", ("json", "csv"), "json") == "csv"
    days = parameters.range().outward(DAY)
    metric_type = parameters.metric_type(required=False)
    order = parameters.choice("order", ORDERS, "-value" if metric_type else "-last_seen")
    figure = order.lstrip("-")
    limit = parameters.integer("limit", MOST_CSV if as_csv else LIMIT, 1, MOST_CSV if as_csv else MOST)
    after_number, after_text, after_id = parameters.after(order, (float, str, UUID)) or (None, None, None)
    sql = DESCENDING if order == "-name" else ASCENDING
    bounds = {
        "first_day": days.start, "end_day": days.end, "metric_type": metric_type, "search": parameters.text("search"),
        "figure": figure, "sign": -1 if order.startswith("-") else 1, "limit": limit + 1,
        "after_number": after_number, "after_text": after_text, "after_id": after_id,
    }  # fmt: skip

    def read(session: Session) -> Row:
        aggregation = find(session, metric_type)["aggregation"] if metric_type else None
        rows = session.rows(sql, aggregation=aggregation, **bounds)
        page, last = rows[:limit], rows[limit - 1 : limit]
        more = [cursor(order, repr(row["sort_number"]), row["sort_text"], row["user_id"]) for row in last]
        return {
            "from": days.start,
            "to": days.end,
            "order": order,
            "total": rows[0]["total"] if rows else None,
            "users": [
                {name: row[name] for name in row if name not in ("sort_text", "sort_number", "total")} for row in page
            ],
            "next": more[0] if len(rows) > limit else None,
        }

    return read
