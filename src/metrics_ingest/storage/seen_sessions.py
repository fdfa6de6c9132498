"""The sessions that this process has seen stored: a hint to the database which ones it need not insert.

Correctness does not depend on it: the database creates a session that is missing all the same (erased since, say), and
looks for one that the hint does not name. So nothing is lost when a process ends.
"""

from collections.abc import Sequence

from metrics_ingest.model.metric import MetricRow

MAX_SESSIONS = 50_000  # about six megabytes


class SeenSessions:
    """A bounded set of (user_id, session_id)."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def unseen(self, rows: Sequence[MetricRow]) -> list[bool]:
        """For each metric whether its session may be new; empty if all have been seen."""
        seen = self._seen
        marks = [user_id + session_id not in seen for user_id, _, _, session_id, _, _ in rows]
        return marks if True in marks else []

    def remember(self, rows: Sequence[MetricRow]) -> None:
        """Add the sessions of metrics that are stored."""
        if len(self._seen) > MAX_SESSIONS:
            self._seen.clear()
        self._seen.update([user_id + session_id for user_id, _, _, session_id, _, _ in rows])
