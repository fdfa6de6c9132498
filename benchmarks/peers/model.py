"""What the Python peers read and store: the same rules for the fields, the same row, in pydantic's usual way."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid3, uuid4

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def rfc_3339(value: Any) -> str:
    """Pydantic alone also takes bare dates and Unix times."""
    if not isinstance(value, str) or not RFC_3339.fullmatch(value):
        raise ValueError("an RFC 3339 time with an offset is expected")
    return value


def in_range(value: datetime) -> datetime:
    """From 2000 to a day ahead, in UTC."""
    if not EARLIEST <= value <= datetime.now(UTC) + DAY:
        raise ValueError("out of range")
    return value.astimezone(UTC)


class Metric(BaseModel):
    """One measurement."""

    model_config = ConfigDict(extra="forbid")

    user_id: UUID
    metric_type: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    value: Annotated[float, Field(strict=True, allow_inf_nan=False)]
    timestamp: Annotated[AwareDatetime, BeforeValidator(rfc_3339), AfterValidator(in_range)]
    session_id: UUID | None = None
    metric_id: UUID | None = None

    def row(self) -> tuple[UUID, datetime, UUID, UUID, str, float]:
        """user_id, timestamp, metric_id, session_id, metric_type, value."""
        session_id = self.session_id or uuid3(self.user_id, self.timestamp.date().isoformat())
        return self.user_id, self.timestamp, self.metric_id or uuid4(), session_id, self.metric_type, self.value
