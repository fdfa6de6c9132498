"""What the fuzzers send: the corpus, mutations of it, JSON of any kind, and metrics that the contract allows."""

import json
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"
USER = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
HTTP = sorted(path.name for path in (CORPUS / "http").iterdir())
BODIES = sorted(
    f"{path.parent.name}/{path.name}" for kind in ("json", "ndjson", "gzip") for path in (CORPUS / kind).iterdir()
)
HEADERS = {
    "json": {"Content-Type": "application/json"},
    "ndjson": {"Content-Type": "application/x-ndjson"},
    "gzip": {"Content-Type": "application/json", "Content-Encoding": "gzip"},
}


def examples(count: int, weight: int = 1) -> settings:
    """Try `count` examples, the same ones in each run.

    With FUZZ_EXAMPLES set (`make fuzz`) try that many times `weight`, and new ones in each run.
    """
    asked = int(os.environ.get("FUZZ_EXAMPLES", "0")) * weight
    return settings(
        max_examples=asked or count,
        derandomize=not asked,  # because a test run should fail for what was changed only
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


def mutated(seed: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    """Replace so many bytes of the seed by a piece, at positions that wrap around."""
    data = bytearray(seed)
    for position, piece, replaced in changes:
        start = position % (len(data) + 1)
        data[start : start + replaced] = piece
    return bytes(data)


WORDS = rb': , " { [ } ] \ \u0000 \ud800 - 1e999 NaN null 99999999999999999999 chunked gzip'.split()
PIECES = st.sampled_from([*WORDS, b"", b" ", b"\0", b"\n", b"\r\n", b"\r\n\r\n", b"\xff"]) | st.binary(max_size=8)
CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), PIECES, st.integers(0, 8)), min_size=1, max_size=6)

NAMES = ("user_id", "metric_type", "value", "timestamp", "session_id", "metric_id", "metrics", "name", "email")
TEXTS = st.sampled_from([USER, "talked_time", "2024-08-08T12:34:56Z", "2024-08-08T12:34:56+23:59", "a@b.co"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), inner, max_size=7)
    ),
    max_leaves=20,
)
METRICS = st.fixed_dictionaries(
    {"user_id": TEXTS, "metric_type": TEXTS, "value": st.floats() | VALUES, "timestamp": TEXTS | st.text(max_size=30)},
    optional={"session_id": TEXTS, "metric_id": TEXTS | VALUES, "x": VALUES},
)
DOCUMENTS = VALUES | METRICS | st.lists(METRICS | VALUES, max_size=5) | st.builds(lambda m: {"metrics": m}, VALUES)
SEEDS = [(CORPUS / name).read_bytes()[:5_000] for name in BODIES if not name.startswith("gzip/")]
BYTES = (
    st.binary(max_size=200)
    | DOCUMENTS.map(lambda document: json.dumps(document).encode())
    | DOCUMENTS.map(lambda document: json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    | st.builds(mutated, st.sampled_from(SEEDS), CHANGES)
    | st.builds(mutated, DOCUMENTS.map(lambda document: json.dumps(document).encode()), CHANGES)
    | st.lists(st.sampled_from(SEEDS), max_size=4).map(b"\n".join)
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
ALLOWED_VALUES = {
    "talked_time": st.floats(0, 86400) | st.integers(0, 86400) | st.booleans(),
    "microphone_used": st.sampled_from([0, 1, 0.0, 1.0, True, False]),
    "speaker_used": st.sampled_from([0, 1, 0.0, 1.0, True, False]),
    "voice_sentiment": st.floats(-1, 1) | st.integers(-1, 1) | st.booleans(),
}
OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
INSTANTS = st.datetimes(datetime(2000, 1, 1), datetime(2026, 11, 20), timezones=st.just(UTC))
IDS = st.uuids(allow_nil=False).flatmap(lambda one: st.sampled_from([str(one), str(one).upper(), one.hex]))


@st.composite
def allowed_metrics(draw: st.DrawFn) -> tuple[dict[str, Any], datetime]:
    """A metric that the contract allows, without its user, and its instant."""
    metric_type = draw(st.sampled_from(list(ALLOWED_VALUES)))
    instant = draw(INSTANTS)
    written = instant.astimezone(draw(OFFSETS)).isoformat(sep=draw(st.sampled_from(["T", "t", " "])))
    metric = {"metric_type": metric_type, "value": draw(ALLOWED_VALUES[metric_type]), "timestamp": written}
    for name in ("metric_id", "session_id"):
        if draw(st.booleans()):
            metric[name] = draw(IDS)
    return metric, instant
