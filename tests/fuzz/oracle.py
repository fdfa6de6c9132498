"""Random batches, and what the contract says about each: counts, errors and the table after it."""

from typing import Any
from uuid import uuid4

from hypothesis import strategies as st

Faults = list[tuple[str, str | None]]  # code and field

ABSENT = object()
NIL = "00000000-0000-0000-0000-000000000000"
RANGES: dict[str, tuple[float, float]] = {
    "talked_time": (0, 86400),
    "microphone_used": (0, 1),
    "speaker_used": (0, 1),
    "voice_sentiment": (-1, 1),
}
IDS = [f"6f1c2b7e-3a52-4c0e-9d3b-0a4f5b1c2d3{digit}" for digit in "0123"]
SESSIONS = [f"0b7fd3a4-95c2-4d53-8a33-9d6d7a0f9c1{digit}" for digit in "01"]
NOON, ONE, LATE = ("2024-08-08T12:00:00Z", "2024-08-08T12:00:00.000001Z", "2099-01-01T00:00:00Z")
INSTANTS = {  # as written: the instant, or the code of what is wrong with it
    NOON: NOON,
    "2024-08-08T14:00:00+02:00": NOON,
    "2024-08-08 12:00:00.000000z": NOON,
    ONE: ONE,
    "2024-08-07T22:30:00.0000019-1330": ONE,
    "2024-08-08 13:00:00+01": NOON,
    LATE: LATE,
    "1999-12-31T23:59:59Z": "timestamp_out_of_range",
    "2024-08-08T12:00:00": "invalid_timestamp",
    "yesterday": "invalid_timestamp",
}


def mostly(good: list[Any], odd: list[Any]) -> st.SearchStrategy[Any]:
    """Nineteen in twenty are good."""
    return st.integers(0, 19).flatmap(lambda number: st.sampled_from(odd if number == 7 else good))


ITEMS = mostly(["object"], ["object", None, 5, [], "text"]).flatmap(
    lambda form: (
        st.fixed_dictionaries({
            "user_id": mostly(["known"], [IDS[0], NIL, "x", 7, None, ABSENT]),
            "metric_type": mostly(["talked_time", "microphone_used"], [*RANGES, "unheard_of", "Bad", 1, ABSENT]),
            "value": mostly([0, 1, True, 1.0], [0.5, -1, False, 86400, 86400.5, 1e300, "1", None, [1], ABSENT]),
            "timestamp": mostly(list(INSTANTS)[:6], [*list(INSTANTS)[6:], 1723118400, None, ABSENT]),
            "metric_id": mostly(IDS, ["x", 5, None, NIL, IDS[0].upper(), ABSENT]),
            "session_id": mostly([ABSENT, None, *SESSIONS], ["x", NIL]),
            "mood": mostly([ABSENT], [ABSENT, 1]),
        }).map(lambda item: {name: value for name, value in item.items() if value is not ABSENT})
        if form == "object"
        else st.just(form)
    )
)  # fmt: skip
BATCHES = st.lists(
    st.tuples(
        st.lists(ITEMS, min_size=1, max_size=12),
        st.booleans(),
        st.sampled_from(["array", "object", "lines"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


def is_uuid(value: object) -> bool:
    return isinstance(value, str) and len(value) == 36


def faults_of(item: Any, user_id: str) -> Faults:
    """What the contract finds wrong with one item, whatever else is stored; each step if the last found nothing."""
    return form_faults(item) or late_faults(item) or database_faults(item, user_id)


def form_faults(item: Any) -> Faults:
    """What is wrong with the item's form."""
    if not isinstance(item, dict):
        return [("invalid_field", None)]
    found: Faults = [
        ("missing_field", name) for name in ("user_id", "metric_type", "value", "timestamp") if name not in item
    ]
    found += [
        ("invalid_uuid", name)
        for name in ("user_id", "metric_id", "session_id")
        if name in item and not is_uuid(item[name]) and (name == "user_id" or item[name] is not None)
    ]
    if "metric_type" in item and item["metric_type"] not in (*RANGES, "unheard_of"):
        found.append(("invalid_metric_type", "metric_type"))
    if "value" in item and not isinstance(item["value"], float | int):
        found.append(("invalid_value", "value"))
    if "timestamp" in item:
        instant = INSTANTS.get(item["timestamp"], "invalid_timestamp")
        if instant not in (NOON, ONE, LATE):
            found.append((instant, "timestamp"))
    if "mood" in item:
        found.append(("unknown_field", "mood"))
    return found


def late_faults(item: Any) -> Faults:
    """What is wrong with what the item says."""
    nil: Faults = [("invalid_uuid", name) for name in ("user_id", "metric_id", "session_id") if item.get(name) == NIL]
    return nil + ([("timestamp_out_of_range", "timestamp")] if item["timestamp"] == LATE else [])


def database_faults(item: Any, user_id: str) -> Faults:
    """What only the database knows."""
    found: Faults = [("unknown_user", "user_id")] if item["user_id"] != user_id else []
    if item["metric_type"] not in RANGES:
        return [*found, ("unknown_metric_type", "metric_type")]
    least, most = RANGES[item["metric_type"]]
    flag = item["metric_type"].endswith("_used")
    if not least <= item["value"] <= most or (flag and item["value"] not in (0, 1)):
        found.append(("value_out_of_range", "value"))
    return found


class Oracle:
    """What the table must hold, and what each batch must be answered."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.table: dict[tuple[str, str], tuple[Any, ...]] = {}

    def answer(self, items: list[Any], *, strict: bool) -> tuple[int, int, int, dict[int, Faults]]:
        """Return the status, stored, duplicates, and the errors by index."""
        table, stored, duplicates = dict(self.table), 0, 0
        errors = {}
        for index, item in enumerate(items):
            found = faults_of(item, self.user_id)
            if not found:
                identity = (INSTANTS[item["timestamp"]], (item.get("metric_id") or str(uuid4())).lower())
                content = (item["metric_type"], float(item["value"]), item.get("session_id"))
                if table.setdefault(identity, content) != content:
                    found = [("metric_conflict", "metric_id")]
                elif len(table) > len(self.table) + stored:
                    stored += 1
                else:
                    duplicates += 1
            if found:
                errors[index] = sorted(found)
        if strict and errors:
            return 422, 0, 0, errors
        self.table = table
        return (200 if not errors else 207 if stored + duplicates else 422), stored, duplicates, errors
