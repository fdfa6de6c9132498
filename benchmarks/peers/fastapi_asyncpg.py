"""FastAPI + asyncpg. TRANSACTION=1: two statements in a transaction; else one statement, a single round trip."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, HTTPException
from model import Metric

SESSION = "INSERT INTO sessions (user_id, session_id, start_time) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
METRIC = """
INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT DO NOTHING"""
BOTH = """
WITH session AS (
    INSERT INTO sessions (user_id, session_id, start_time) VALUES ($1, $4, $2) ON CONFLICT DO NOTHING
)
INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT DO NOTHING"""
# In key order: two batches in different orders would deadlock.
MANY = """
WITH item AS (
    SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::uuid[], $5::text[], $6::float8[])
                  AS item (user_id, timestamp, metric_id, session_id, metric_type, value)
), session AS (
    INSERT INTO sessions (user_id, session_id, start_time)
    SELECT user_id, session_id, min(timestamp) FROM item GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT DO NOTHING
)
INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
SELECT * FROM item ORDER BY user_id, timestamp, metric_id
ON CONFLICT DO NOTHING"""
STORED = {"message": "Metric stored successfully!"}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(min_size=1, max_size=int(os.environ["POOL"])) as app.state.pool:
        yield


app = FastAPI(lifespan=lifespan)


async def ingest(metric: Metric) -> dict[str, str]:
    try:
        await app.state.pool.execute(BOTH, *metric.row())
    except asyncpg.ForeignKeyViolationError as error:
        raise HTTPException(422, "unknown user or metric type") from error
    return STORED


async def ingest_in_a_transaction(metric: Metric) -> dict[str, str]:
    user_id, timestamp, _, session_id, *_ = row = metric.row()
    try:
        async with app.state.pool.acquire() as connection, connection.transaction():
            await connection.execute(SESSION, user_id, session_id, timestamp)
            await connection.execute(METRIC, *row)
    except asyncpg.ForeignKeyViolationError as error:
        raise HTTPException(422, "unknown user or metric type") from error
    return STORED


app.post("/ingest/")(ingest_in_a_transaction if os.environ.get("TRANSACTION") else ingest)


@app.post("/ingest_batch/")
async def ingest_batch(metrics: list[Metric]) -> dict[str, int]:
    columns = zip(*(metric.row() for metric in metrics), strict=True)
    try:
        await app.state.pool.execute(MANY, *columns)
    except asyncpg.ForeignKeyViolationError as error:
        raise HTTPException(422, "unknown user or metric type") from error
    return {"stored": len(metrics)}
