"""Flask + psycopg 3 pool, for gunicorn's threads. One statement a request, in autocommit: a single round trip."""

import os

import psycopg
from flask import Flask, Response, jsonify, request
from model import Metric
from psycopg_pool import ConnectionPool
from pydantic import ValidationError

BOTH = """
WITH session AS (
    INSERT INTO sessions (user_id, session_id, start_time) VALUES (%(user_id)s, %(session_id)s, %(timestamp)s)
    ON CONFLICT DO NOTHING
)
INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
VALUES (%(user_id)s, %(timestamp)s, %(metric_id)s, %(session_id)s, %(metric_type)s, %(value)s)
ON CONFLICT DO NOTHING"""
COLUMNS = ("user_id", "timestamp", "metric_id", "session_id", "metric_type", "value")

app = Flask(__name__)
pool = ConnectionPool(
    min_size=1, max_size=int(os.environ["POOL"]), open=False, kwargs={"autocommit": True, "prepare_threshold": 0}
)


@app.post("/ingest/")
def ingest() -> Response | tuple[Response, int]:
    try:
        metric = Metric.model_validate_json(request.get_data())
    except ValidationError as error:
        return jsonify(detail=error.errors(include_url=False, include_context=False)), 422
    pool.open()  # once: a pool that is open stays so; not at import, which may be before a fork
    try:
        with pool.connection() as connection:
            connection.execute(BOTH, dict(zip(COLUMNS, metric.row(), strict=True)))
    except psycopg.errors.ForeignKeyViolation:
        return jsonify(detail="unknown user or metric type"), 422
    return jsonify(message="Metric stored successfully!")
