"""Where records come from: a resource and an instrumentation scope."""

from dataclasses import dataclass

from pydantic_core import to_json

from metrics_ingest.otlp.records import Attributes, Condition, Group
from metrics_ingest.otlp.teaching import LOG

DELTA = 1  # of AggregationTemporality; cumulative is 2, unspecified 0


@dataclass(slots=True)
class Origin:
    """The resource and the scope of records. Schema URLs are no part of what a record says."""

    resource: Attributes
    scope: str
    version: str
    scope_attributes: Attributes

    def of_metric(self, name: str, kind: str, temporality: int | None) -> Group:
        """Return the group of the points of a metric. `kind` is its data's field in the protobuf message."""
        words = kind.replace("_", " ")
        condition = None
        if kind == "sum":
            condition = None if temporality == DELTA else Condition.CUMULATIVE_SUM
        elif "histogram" in kind:
            condition = Condition.HISTOGRAM if temporality == DELTA else Condition.CUMULATIVE_HISTOGRAM
        return Group(self.resource, self._said(name, kind), words, condition)

    def of_logs(self) -> Group:
        """Return the group of log records."""
        return Group(self.resource, self._said(), LOG)

    def _said(self, *more: str) -> bytes:
        scope_attributes = sorted(self.scope_attributes.items())
        return to_json((sorted(self.resource.items()), self.scope, self.version, scope_attributes, *more))
