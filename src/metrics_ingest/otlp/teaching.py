"""Adds to a fault what the user of an OpenTelemetry SDK can do about it."""

from dataclasses import replace

from metrics_ingest.errors import Fault

LOG = "log record"
HINTS = {
    "user_id": "the attribute user.id, of the record or of its resource, must be the UUID of a registered user",
    "session_id": "it is the attribute session.id, of the record or of its resource",
    "metric_id": "it is the attribute metric.id of the record",
    "timestamp": "it is time_unix_nano of the record",
    "metric_type": "it is the name of the instrument, in lower case, with _ for . and -",
    "value": "it is the value of the point",
}
LOG_HINTS = {
    "timestamp": "it is time_unix_nano of the record, else observed_time_unix_nano",
    "metric_type": "it is the event name of the record, in lower case, with _ for . and -",
    "value": "it is the attribute value, else a body that is a number, true or false",
}
VALUE_HINTS = {
    "summary": "a summary has quantiles only: use a counter, a gauge or a histogram",
    "histogram": "it is the sum of the histogram, which this one does not have",
}
CODE_HINTS = {
    "unknown_metric_type": "`metrics-ingest type add` registers it",
    "unknown_user": "POST /users/ registers users",
    "value_out_of_range": "",
    "timestamp_out_of_range": "",
    "metric_conflict": "",
}


def taught(fault: Fault, kind: str) -> Fault:
    """Return the fault of a record of that kind ("log record", or what the metric is) with a hint in its detail."""
    hint = CODE_HINTS.get(fault.code)
    if hint is None and fault.field:
        hint = HINTS.get(fault.field)
        if kind == LOG:
            hint = LOG_HINTS.get(fault.field, hint)
        elif fault.field == "value" and fault.code == "missing_field":
            hint = next((text for name, text in VALUE_HINTS.items() if name in kind), hint)
    return replace(fault, detail=f"{fault.detail}; {hint}") if hint else fault
