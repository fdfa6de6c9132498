"""The signals of OpenTelemetry that are served, and their paths."""

from enum import Enum


class Signal(Enum):
    """What is sent to a path. The value is how the path ends; of NONE, that of no path that is served."""

    METRICS = "v1/metrics"
    LOGS = "v1/logs"
    NONE = ""


def signal_of(path: str) -> Signal:
    """Return the signal whose path this is, after any prefix."""
    try:
        return Signal("/".join(path.strip("/").split("/")[-2:]))
    except ValueError:
        return Signal.NONE
