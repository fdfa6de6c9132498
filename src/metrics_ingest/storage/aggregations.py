"""Looks up how metric types are aggregated."""

from collections.abc import Sequence

from metrics_ingest.storage.operations import Operation
from metrics_ingest.storage.writer import writer


async def aggregations(names: Sequence[str], timeout_s: float = 0) -> dict[str, str]:
    """Return the aggregation of each of the metric types that is registered. Raise what Writer.write raises.

    `timeout_s` is how long to wait (0: WRITE_TIMEOUT_S).
    """
    found = await writer().write(Operation.DESCRIBE_TYPES, names, timeout_s=timeout_s)
    return {names[outcome.position]: outcome.facts["aggregation"] for outcome in found}
