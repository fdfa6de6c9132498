"""`api/types`: the registry of metric types."""

from typing import Any

from metrics_ingest.dashboard.parameters import Parameters, refuse
from metrics_ingest.dashboard.reader import Row, Session

PARAMETERS: tuple[str, ...] = ()

TYPES = """
    SELECT metric_type, kind, unit, aggregation, min_value, max_value, description, created_at, retired_at
    FROM metric_types
    ORDER BY created_at, metric_type
"""
TYPE = "SELECT metric_type, kind, unit, aggregation FROM metric_types WHERE metric_type = :metric_type"


def plan(_: Parameters) -> Any:
    """Return what reads every type, retired ones too."""
    return lambda session: {"types": session.rows(TYPES)}


def find(session: Session, metric_type: str | None) -> Row:
    """The type of this name. Raise RequestRefused when none is registered."""
    rows = session.rows(TYPE, metric_type=metric_type)
    if not rows:
        refuse(
            "unknown_metric_type",
            f"no metric type {metric_type} is registered; api/types lists those that are",
            "metric_type",
        )
    return rows[0]
