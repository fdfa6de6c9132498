"""The JSON of all replies, as types, from which the OpenAPI document is made. Tests check every reply against it."""

from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired
from uuid import UUID

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from metrics_ingest.errors import CODES
from metrics_ingest.http.functions import FUNCTIONS
from metrics_ingest.model.metric import METRIC
from metrics_ingest.model.user import USER

Count = Annotated[int, Field(ge=0)]
Code = Annotated[str, Field(json_schema_extra={"enum": list(CODES)})]
FunctionName = Annotated[str, Field(json_schema_extra={"enum": [function.name for function in FUNCTIONS]})]


class Closed(TypedDict):
    """An object without other fields."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]  # pydantic's way for a TypedDict


class Stored(Closed):
    """The metric is committed."""

    message: Literal["Metric stored successfully!"]


class Error(Closed):
    """One thing that is wrong."""

    code: Code
    field: str | None
    metric_id: UUID | None
    detail: str


class BatchError(Closed):
    """One thing that is wrong with the metric at `index`."""

    index: Annotated[Count, Field(description="the metric's position, from 0; in NDJSON blank lines do not count")]
    code: Code
    field: str | None
    metric_id: UUID | None
    detail: str


class BatchReport(Closed):
    """received = stored + duplicates + rejected; for a refused strict batch received = rejected + valid."""

    message: str
    received: Annotated[int, Field(ge=1)]
    stored: Count
    duplicates: Annotated[Count, Field(description="stored before, or earlier in the batch, with the same content")]
    rejected: Count
    valid: NotRequired[Annotated[Count, Field(description="in a refused strict batch: not rejected, and not stored")]]
    errors: Annotated[list[BatchError], Field(description="ascending by index; a metric may have several")]


class Problem(Closed):
    """RFC 9457. `code` and `detail` are those of the first error."""

    type: Annotated[str, Field(pattern="^urn:metrics-ingest:problem:[a-z_]+$")]
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    code: Code
    errors: Annotated[list[Error], Field(min_length=1)]


class RegisteredUser(Closed):
    """A user as it is stored now."""

    user_id: UUID
    name: str
    email: str | None
    created_at: datetime


class Liveness(Closed):
    """The function runs."""

    function: FunctionName
    version: str
    status: Literal["ok"]


class Health(Closed):
    """The database answers."""

    function: FunctionName
    version: str
    database: Literal["ok"]


def json_schemas() -> dict[str, Any]:
    """Return the JSON Schemas of all request and reply bodies by name, as `components.schemas` of OpenAPI."""
    replies = (Stored, BatchReport, Problem, RegisteredUser, Liveness, Health)
    adapters: list[TypeAdapter[Any]] = [METRIC, USER, *(TypeAdapter(reply) for reply in replies)]
    _, definitions = TypeAdapter.json_schemas(
        [(number, "validation", adapter) for number, adapter in enumerate(adapters)],
        ref_template="#/components/schemas/{model}",
    )
    return dict(sorted(definitions["$defs"].items()))
