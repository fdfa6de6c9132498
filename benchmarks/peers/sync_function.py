"""Our product without group commit: a sync function, a pg8000 connection a thread, a transaction a request."""

import os
import threading

import functions_framework
import pg8000.native
from flask import Request
from model import Metric
from pydantic import ValidationError

SESSION = """
INSERT INTO sessions (user_id, session_id, start_time) VALUES (:user_id, :session_id, :timestamp)
ON CONFLICT DO NOTHING"""
METRIC = """
INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
VALUES (:user_id, :timestamp, :metric_id, :session_id, :metric_type, :value)
ON CONFLICT DO NOTHING"""
FOREIGN_KEY_VIOLATION = "23503"

local = threading.local()


def connection() -> pg8000.native.Connection:
    if not hasattr(local, "connection"):
        local.connection = pg8000.native.Connection(
            os.environ["PGUSER"],
            database=os.environ["PGDATABASE"],
            unix_sock=f"{os.environ['PGHOST']}/.s.PGSQL.{os.environ['PGPORT']}",
        )
    return local.connection


@functions_framework.http
def ingest(request: Request) -> tuple[dict[str, str], int]:
    try:
        metric = Metric.model_validate_json(request.get_data())
    except ValidationError as error:
        return {"detail": str(error)}, 422
    user_id, timestamp, metric_id, session_id, metric_type, value = metric.row()
    database = connection()
    database.run("BEGIN")
    try:
        database.run(SESSION, user_id=user_id, session_id=session_id, timestamp=timestamp)
        database.run(
            METRIC,
            user_id=user_id,
            timestamp=timestamp,
            metric_id=metric_id,
            session_id=session_id,
            metric_type=metric_type,
            value=value,
        )
        database.run("COMMIT")
    except pg8000.native.DatabaseError as error:
        database.run("ROLLBACK")
        if error.args[0].get("C") != FOREIGN_KEY_VIOLATION:
            raise
        return {"detail": "unknown user or metric type"}, 422
    return {"message": "Metric stored successfully!"}, 200
