"""On Citus: each metric goes to the node that has its user, so that a transaction stays on one node.

A call of store_metrics_near with the metrics of one node's users is relayed there as one command, and commits in one
phase. Each node has a writer of its own: one that is down holds up the metrics of its own users only.
On plain PostgreSQL nothing of this is used.
"""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from functools import cache
from uuid import UUID

from metrics_ingest.model.metric import MetricRow
from metrics_ingest.settings import settings
from metrics_ingest.storage.operations import Commit, Operation, Outcome
from metrics_ingest.storage.writer import Writer, make_writer, writer

MAX_USERS = 100_000  # about ten megabytes
FORGET_AFTER_S = 600.0  # users move when shards are rebalanced; a call at the wrong node is right, and slow


class Nodes:
    """The nodes of the users that this process has seen, and a writer for each node."""

    def __init__(self, main: Writer) -> None:
        """`main` is the process's writer. It serves whatever is not for one node."""
        self._main = main
        self._writers: dict[int, Writer] = {}
        self._node_of: dict[bytes, int] = {}
        self._forget_at = 0.0

    def write(self, rows: Sequence[MetricRow], commit: Commit, timeout_s: float) -> Awaitable[list[Outcome]]:
        """Store metrics; return the outcomes of those not simply stored. Raise what Writer.write raises."""
        if not self._main.distributed:
            return self._main.write(Operation.STORE_METRICS, rows, commit, timeout_s)
        found = {self._node_of.get(row[0]) for row in rows}
        node = found.pop()
        if found or node is None or time.monotonic() > self._forget_at:
            return self._write_by_node(rows, commit, timeout_s)
        return self._writer(node).write(Operation.STORE_NEAR, rows, commit, timeout_s)

    async def _write_by_node(self, rows: Sequence[MetricRow], commit: Commit, timeout_s: float) -> list[Outcome]:
        """Store them node by node, unless they go together or not at all.

        When one node's part fails, this raises although the others' may be committed, as after a lost connection: the
        sender tries again with the same ids.
        """
        until = time.monotonic() + timeout_s
        parts = await self._split(rows, timeout_s)
        if None in parts or (len(parts) > 1 and commit is not Commit.VALID_ITEMS):
            return await self._main.write(Operation.STORE_METRICS, rows, commit, timeout_s)
        left_s = max(until - time.monotonic(), 0.001) if timeout_s else 0
        writes = [
            self._writer(node).write(Operation.STORE_NEAR, [rows[at] for at in positions], commit, left_s)
            for node, positions in parts.items()
            if node is not None
        ]
        results = await asyncio.gather(*writes, return_exceptions=True)
        outcomes: list[Outcome] = []
        for result, positions in zip(results, parts.values(), strict=True):
            if isinstance(result, BaseException):
                raise result
            outcomes += [outcome._replace(position=positions[outcome.position]) for outcome in result]
        return sorted(outcomes, key=lambda outcome: outcome.position)

    async def _split(self, rows: Sequence[MetricRow], timeout_s: float) -> dict[int | None, list[int]]:
        """The positions of the metrics by the node that has their user; None is a node that is not known."""
        now = time.monotonic()
        if now > self._forget_at or len(self._node_of) > MAX_USERS:
            self._node_of.clear()
            self._forget_at = now + FORGET_AFTER_S
        if unknown := list({row[0]: None for row in rows if row[0] not in self._node_of}):
            texts = [str(UUID(bytes=user_id)) for user_id in unknown]
            found = await self._main.write(Operation.LOCATE_USERS, texts, timeout_s=timeout_s)
            self._node_of.update((unknown[outcome.position], outcome.facts["node"]) for outcome in found)
        parts: dict[int | None, list[int]] = {}
        for position, row in enumerate(rows):
            parts.setdefault(self._node_of.get(row[0]), []).append(position)
        return parts

    def _writer(self, node: int) -> Writer:
        if node not in self._writers:
            self._writers[node] = make_writer((settings().write_lanes + 1) // 2)
        return self._writers[node]


@cache
def nodes() -> Nodes:
    """Return those of this process. Call this from a request, because they belong to the running loop."""
    return Nodes(writer())
