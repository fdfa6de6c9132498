"""The files that `metrics-ingest load` reads: every row is sent as it is written, or rejected with its reason."""

import codecs
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from metrics_ingest.admin import csv_rows, files, lines
from support.console import Console
from support.processes import Stack

HEADER = "user_id,metric_type,value,timestamp\n"
USER = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d"
ROW = {"user_id": USER, "metric_type": "talked_time", "value": 1.5, "timestamp": "2024-08-08T12:00:00Z"}


@pytest.fixture
def load(stack: Stack, tmp_path: Path) -> Callable[..., Any]:
    """Load a file of these bytes; return the counts, and the rejected entries by their line."""

    def run(content: bytes | str, name: str = "m.csv", exit_code: int = 1) -> tuple[Any, dict[int, Any]]:
        path, rejected = tmp_path / name, tmp_path / "rejected.ndjson"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        options = ("--url", f"{stack.ingest_batch.url}/ingest_batch/", "--rejected", str(rejected))
        counts = Console("").json("load", str(path), *options, exit_code=exit_code)
        entries = [json.loads(line) for line in rejected.read_text().splitlines()] if counts["rejected"] else []
        assert len(entries) == counts["rejected"]
        return counts, {entry["line"]: entry for entry in entries}

    return run


def chunks(tmp_path: Path, content: bytes, name: str = "m.ndjson") -> list[Any]:
    """The file's chunks: the key, and the metrics as they are sent."""
    path = tmp_path / name
    path.write_bytes(content)
    return [
        (chunk.idempotency_key, [line.metric for line in chunk.lines]) for chunk in files.read_chunks(str(path), False)
    ]


def test_row_with_another_number_of_cells_is_rejected_and_its_neighbours_are_stored(
    stack: Stack, load: Callable[..., Any]
) -> None:
    """`12,5` is a decimal comma: it was stored as 12."""
    user = stack.user()
    times = [f"2026-03-03T10:00:0{second}Z" for second in range(5)]
    cells = ["1,{}", "12,5,{}", "{}", "2,{},", "3,{}"]
    rows = [f"{user},talked_time,{row.format(time)}" for row, time in zip(cells, times, strict=True)]
    counts, rejected = load(HEADER + "\n".join(rows) + "\n\n  \n")
    assert counts == {"received": 5, "stored": 2, "duplicates": 0, "rejected": 3}
    assert [row[5] for row in stack.stored(user)] == [1, 3]
    assert sorted(rejected) == [3, 4, 5]
    assert [rejected[line]["metric"] for line in (3, 4, 5)] == rows[1:4]
    assert [error["detail"][:47] for error in rejected[3]["errors"]] == [
        "the row has 5 cells, but the header has 4; a ce"
    ]
    assert rejected[4]["errors"][0]["detail"].startswith("the row has 3 cells, but the header has 4")


@pytest.mark.parametrize(
    ("cell", "value"),
    [("1", 1), ("+1.5", 1.5), (".5", 0.5), ("5.", 5), (" 7 ", 7), ("\t8", 8), ("1e2", 100), ("-0", 0), ("1E+2", 100),
     ("0.3333333333333333", 0.3333333333333333), ("TRUE", True), ("False", False), (" true ", True),
     ("1_5", "1_5"), ("\uff11\uff12", "\uff11\uff12"), ("0x10", "0x10"),
     ("inf", "inf"), ("nan", "nan"), ("Infinity", "Infinity"),
     ("1e999", "1e999"), ("007", "007"), ("1,5", "1,5"), ("--1", "--1"), ("1 5", "1 5"), (".", "."), ("e5", "e5"),
     ("\u00a05", "\u00a05"), ("1\n", "1\n"), ("t", "t"), ("yes", "yes")],
)  # fmt: skip
def test_number_in_a_cell_follows_the_grammar_of_json(tmp_path: Path, cell: str, value: Any) -> None:
    """Anything else is sent as text, which ingest_batch refuses with its reason."""
    ((_, (metric,)),) = chunks(tmp_path, f'value\n"{cell}"\n'.encode(), "m.csv")
    found = json.loads(metric)["value"]
    assert (found, type(found)) == (value, float if type(value) is int else type(value))


def test_text_that_is_no_number_is_rejected_as_a_value(stack: Stack, load: Callable[..., Any]) -> None:
    user = stack.user()
    cells = ["1_5", "\uff11\uff12", "0x10", "inf", "nan"]
    counts, rejected = load(HEADER + "".join(f"{user},talked_time,{cell},2026-03-03T10:00:00Z\n" for cell in cells))
    assert (counts["received"], counts["rejected"], stack.stored(user)) == (5, 5, [])
    assert {entry["errors"][0]["code"] for entry in rejected.values()} == {"invalid_value"}
    assert [rejected[line]["metric"]["value"] for line in range(2, 7)] == cells


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("user_id,value,VALUE", "a column of a CSV file must not be there twice: value"),
        ("user_id, user_id ", "a column of a CSV file must not be there twice: user_id"),
        ("user_id;metric_type;value;timestamp", "its columns are separated by ';': save it with commas between them"),
        ("sep=;", "its columns are separated by ';'"),
        ("user_id\tvalue", "its columns are separated by '\\t'"),
        ("user_id,value,", "not one without a name"),
        ("user_id,\xff", "the columns of a CSV file must be among user_id, metric_type, value"),
        ('user_id,"value', "the header cannot be read: unexpected end of data"),
    ],
)
def test_header_that_is_not_understood_is_an_error(tmp_path: Path, header: str, says: str) -> None:
    with pytest.raises(click.ClickException, match=r"m\.csv: ") as found:
        chunks(tmp_path, header.encode() + b"\n1,2\n", "m.csv")
    assert says in found.value.message


def test_header_may_have_capitals_and_spaces(tmp_path: Path) -> None:
    ((_, metrics),) = chunks(tmp_path, b"\n User_ID ,VALUE,Received_At\na,1,x\n", "m.csv")
    assert metrics == [b'{"user_id": "a", "value": 1.0}']


def test_quoted_cells_may_have_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b'user_id,value\n"a,b",1\n"a""b",2\n"a\r\n\r\nb",3\n"open,4\nc,5\nd"e,6\n"f"g,7\n\nh,8\n"end')
    (chunk,) = files.read_chunks(str(path), False)
    found = [(line.number, json.loads(line.metric), line.fault and line.fault.detail[:36]) for line in chunk.lines]
    assert found == [
        (2, {"user_id": "a,b", "value": 1.0}, None),
        (3, {"user_id": 'a"b', "value": 2.0}, None),
        (4, {"user_id": "a\n\nb", "value": 3.0}, None),
        (7, '"open,4', "the row is not valid CSV: unexpected"),
        (8, {"user_id": "c", "value": 5.0}, None),
        (9, {"user_id": 'd"e', "value": 6.0}, None),
        (10, '"f"g,7', "the row is not valid CSV: ',' expect"),
        (12, {"user_id": "h", "value": 8.0}, None),
        (13, '"end', "the row is not valid CSV: unexpected"),
    ]


@pytest.mark.parametrize(
    ("columns", "last", "kept"),
    [
        ("user_id,value", "b,12", False),  # of 12.5
        ("value,metric_type", "12,talked", False),  # of talked_time
        ("value,metric_id", "12,", False),  # else it would get another identity
        ("value,timestamp", "12,2024-08-08T12:00:00+05", False),  # of +05:30
        ("value,timestamp", "12,2024-08-08T12:00:00Z", True),
        ("value,user_id", f"12,{USER[:-1]}", True),  # ingest_batch refuses it
        ("value,received_at", "12,2024", True),  # it is not read
        ("user_id,name", f"{USER},Gre", False),
    ],
)
def test_row_that_may_be_cut_is_rejected(tmp_path: Path, columns: str, last: str, kept: bool) -> None:
    """The last one, where nothing ends the line."""
    path = tmp_path / "m.csv"
    for end in ("", "\n", "\r", "\r\n"):
        path.write_bytes(f"{columns}\n{last}0\n{last}{end}".encode())
        (chunk,) = files.read_chunks(str(path), False, (*csv_rows.METRIC_COLUMNS, "name"))
        faults = [line.fault and line.fault.detail for line in chunk.lines]
        cut = "the last line has no line end, so it may be cut: add one if it is complete"
        assert faults == [None, None if kept or end else cut]


def test_number_that_was_cut_is_not_stored(stack: Stack, load: Callable[..., Any]) -> None:
    user = stack.user()
    text = f"user_id,metric_type,timestamp,value\n{user},talked_time,2026-03-03T10:00:00Z,12.5\n"
    counts, rejected = load(text.removesuffix(".5\n"))
    assert (counts["rejected"], list(rejected), stack.stored(user)) == (1, [2], [])
    load(text, exit_code=0)
    assert [row[5] for row in stack.stored(user)] == [12.5]


def test_plain_files_keep_the_keys_that_they_have_had(tmp_path: Path) -> None:
    """These are in databases: another key would store such a file a second time."""
    content = f'{{"user_id":"{USER}", "value": 1}}\n  {{"b":2}}\n'.encode()
    key = "load-0-ccade0f6ab485f741ddfa16ed34f46323f9238b02121090f8cb429bfc02fc480"
    assert chunks(tmp_path, content)[0][0] == key
    key = "load-0-22da41d02e541670a367abf123eb268c224263ea2dcead0232df859fed47ed2a"
    assert chunks(tmp_path, f"{HEADER}{USER},talked_time,1,2024-08-08T12:00:00Z\n".encode(), "m.csv")[0][0] == key


@pytest.mark.parametrize("form", ["ndjson", "csv", "json"])
def test_same_text_is_the_same_file_in_any_encoding_line_end_and_packing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(files, "CHUNK", 2)
    metrics = [{**ROW, "metric_type": f"é{n}\U0001f600"} for n in range(5)]
    text = {
        "ndjson": "".join(json.dumps(metric, ensure_ascii=False) + "\n" for metric in metrics),
        "csv": HEADER + "".join(",".join(map(str, metric.values())) + "\n" for metric in metrics),
        "json": json.dumps({"metrics": metrics}, indent=2, ensure_ascii=False) + "\n",
    }[form]
    expected = chunks(tmp_path, text.encode(), f"m.{form}")
    assert [len(sent) for _, sent in expected] == [2, 2, 1]
    packed: list[Callable[[bytes], bytes]] = [bytes, gzip.compress]
    for end in ("\n", "\r\n", "\r"):
        for encoding in ("utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "utf-16"):
            marks = {"utf-16-le": b"", "utf-16-be": codecs.BOM_UTF16_BE}
            for pack in packed:
                for name in (f"other.{form.upper()}", f"m.{form}.GZ"):
                    content = pack(marks.get(encoding, b"") + text.replace("\n", end).encode(encoding))
                    assert chunks(tmp_path, content, name) == expected, (end, encoding, name)


def test_file_with_and_without_byte_order_mark_is_stored_once(stack: Stack, load: Callable[..., Any]) -> None:
    user = stack.user()
    text = "".join(json.dumps({**ROW, "user_id": user, "value": n}) + "\r\n" for n in range(3))
    assert load(text.encode("utf-8-sig"), "a.ndjson", 0)[0]["stored"] == 3
    assert load(text.replace("\r", ""), "b.ndjson", 0)[0]["duplicates"] == 3
    assert load(text.encode("utf-16"), "c.ndjson", 0)[0]["duplicates"] == 3
    assert load(text.replace("\n", ""), "d.JSON", 0)[0]["duplicates"] == 3
    assert sorted(row[5] for row in stack.stored(user)) == [0, 1, 2]


def test_bytes_that_are_not_utf_8_are_reported_with_their_line(stack: Stack, load: Callable[..., Any]) -> None:
    user = stack.user()
    good = [json.dumps({**ROW, "user_id": user, "value": n}).encode() for n in range(2)]
    latin = '{"user_id":"é"}'.encode("latin-1")
    counts, rejected = load(b"\n".join([good[0], latin, good[1]]), "m.ndjson")
    assert counts == {"received": 3, "stored": 2, "duplicates": 0, "rejected": 1}
    assert rejected[2]["errors"] == [{
        "code": "malformed_json", "field": None, "metric_id": None,
        "detail": "byte 13 of the line, 0xe9, is not UTF-8: save the file as UTF-8"}]  # fmt: skip
    row = f"{user},talked_time,5,2026-03-03T10:00:00Z\n"
    counts, rejected = load(HEADER.encode() + "é,,,\n".encode("latin-1") + row.encode())
    assert (counts["stored"], counts["rejected"], list(rejected)) == (1, 1, [2])


def test_half_a_character_of_utf_16_is_reported_with_its_line(tmp_path: Path) -> None:
    for end in (b"\x00", b"\x00\xd8"):
        path = tmp_path / "m.ndjson"
        path.write_bytes("\ufeff{}\n{}\n".encode("utf-16-le") + end)
        (chunk,) = files.read_chunks(str(path), False)
        assert [(line.number, line.fault and line.fault.code) for line in chunk.lines] == [
            (1, None), (2, None), (3, "malformed_json")]  # fmt: skip
    with pytest.raises(click.ClickException, match="it is UTF-32"):
        chunks(tmp_path, "{}".encode("utf-32"))


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", "[]", '{"metrics": [ ]}\n'])
def test_empty_files_have_no_metrics(tmp_path: Path, content: str) -> None:
    assert chunks(tmp_path, content.encode()) == []
    assert chunks(tmp_path, gzip.compress(content.encode())) == []


@pytest.mark.parametrize("content", ["", HEADER, HEADER.strip(), "\ufeff" + HEADER + "\n \n"])
def test_csv_of_a_header_only_has_no_metrics(load: Callable[..., Any], content: str) -> None:
    assert load(content, exit_code=0)[0] == {"received": 0, "stored": 0, "duplicates": 0, "rejected": 0}


def test_line_above_the_limit_is_rejected_and_the_next_ones_are_stored(stack: Stack, load: Callable[..., Any]) -> None:
    user = stack.user()
    good = [json.dumps({**ROW, "user_id": user, "value": n}) for n in range(3)]
    long = '{"user_id": "' + "x" * 3_000_000 + '"}'
    text = "\r\n".join([good[0], long, good[1], '{"a":"' + "y" * lines.MAX_LINE_BYTES, good[2], long])
    for form in (text, text.encode("utf-16")):
        counts, rejected = load(form, "m.ndjson")
        assert (counts["received"], counts["rejected"], sorted(rejected)) == (6, 3, [2, 4, 6])
        assert {entry["errors"][0]["code"] for entry in rejected.values()} == {"payload_too_large"}
        assert rejected[2]["metric"] == long[: lines.MAX_QUOTED]
    assert len(stack.stored(user)) == 3
    row = f"{user},speaker_used,1,2026-03-03T10:00:00Z\n"
    counts, rejected = load(HEADER + row + "x" * 2_000_000 + ",,,\n" + row.replace(",1,", ",0,"))
    assert (counts["stored"], counts["rejected"], list(rejected)) == (2, 1, [3])


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_line_of_any_length_needs_no_more_memory(tmp_path: Path, form: str) -> None:
    """200 MB without a line end: read in blocks, of which the first MiB is kept."""
    path, row = tmp_path / f"m.{form}", json.dumps(ROW) + "\n"
    with path.open("wb") as file:
        file.write((HEADER if form == "csv" else row).encode())
        file.truncate(200_000_000)  # NUL bytes that take no room on the disk
        file.seek(0, io.SEEK_END)
        file.write(b"\n" + (f"{USER},talked_time,1,2024-08-08T12:00:00Z\n" if form == "csv" else row).encode())
    tracemalloc.start()
    (chunk,) = files.read_chunks(str(path), False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [line.fault and line.fault.code for line in chunk.lines[-2:]] == ["payload_too_large", None]
    assert peak < 20_000_000


def test_chunk_of_long_lines_is_not_larger_than_a_request_may_be(stack: Stack, load: Callable[..., Any]) -> None:
    """Forty lines of 300 kB would be answered by 413."""
    user = stack.user()
    good = json.dumps({**ROW, "user_id": user})
    counts, rejected = load("\n".join([*('{"x": "' + "y" * 300_000 + '"}' for _ in range(40)), good]), "m.ndjson")
    assert (counts["received"], counts["stored"], counts["rejected"]) == (41, 1, 40)
    assert rejected[40]["errors"][0]["detail"].startswith("the line is too long")
    assert rejected[1]["errors"][0]["code"] == "missing_field"


def test_lines_are_the_same_however_they_are_cut_into_blocks() -> None:
    text = b"a\r\nbc\rd\n\n\r\r\ne"
    expected = [b"a", b"bc", b"d", b"", b"", b"", b"e"]
    assert list(lines.split_lines([text])) == expected
    assert list(lines.split_lines([text[at : at + 1] for at in range(len(text))])) == expected
    assert list(lines.split_lines([b"a\r", b"", b"\nb"])) == [b"a", b"b"]


@pytest.mark.parametrize("wrapped", ["[{}]", '{{"metrics":\n[{}\n]}}', ' {{ "metrics" : [ {} ] }} ', "\n[\n{}]\n"])
def test_documents_are_loaded_metric_by_metric(stack: Stack, load: Callable[..., Any], wrapped: str) -> None:
    user = stack.user()
    metrics = [json.dumps({**ROW, "user_id": user, "value": n}, indent=1) for n in range(3)]
    twice = metrics[0][:-2] + ', "value": 99\n}'
    counts, rejected = load(wrapped.format(" ,\n".join([*metrics[:2], "7", metrics[2], '{"a":NaN}'])), "m.json")
    assert counts == {"received": 5, "stored": 3, "duplicates": 0, "rejected": 2}
    first = wrapped.split("{}")[0].count("\n") + 1
    assert sorted(rejected) == [first + 12, first + 19]
    assert twice.replace("\n", " ").encode() in files._items([f"[{twice}]".encode()]).__next__().metric


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"a": 1},\n {"b": 2', "line 2, column 9: Expecting ',' delimiter"),
        ('[{"a": 1}\n', "line 1, column 10: expected a comma or ]"),
        ('[{"a": 1},]', "Expecting value"),
        ('{"metrics": [{}]', "unexpected text after the metrics"),
        ('{"metrics": [{}], "more": 1}', "unexpected text after the metrics"),
        ('{"metrics": {}}', "expected an array of metrics"),
        ("[{}] {}", "unexpected text after the metrics"),
        ("[{}, " + "[" * 100_000, "it is nested too deeply"),
        (b'[{},\n"\xff"]', "line 2 is not UTF-8"),
    ],
)
def test_document_that_is_not_valid_sends_nothing(tmp_path: Path, content: str | bytes, says: str) -> None:
    with pytest.raises(click.ClickException, match=r"m\.json: ") as found:
        chunks(tmp_path, content if isinstance(content, bytes) else content.encode(), "m.json")
    assert says in found.value.message


def test_document_above_the_limit_names_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 1_000)
    with pytest.raises(click.ClickException, match="one metric a line"):
        chunks(tmp_path, b"[{}" + b",{}" * 1_000 + b"]")


def test_field_that_is_there_twice_stays_so_in_the_file_of_rejected_metrics(
    stack: Stack, load: Callable[..., Any], tmp_path: Path
) -> None:
    """json.loads would keep the last value, and the next load would store it."""
    user = stack.user()
    twice = json.dumps({**ROW, "user_id": user, "value": 1, "mood": 1})[:-1] + ', "value": 99}'
    deep = "[" * 5_000
    _, rejected = load(f"{twice}\n{deep}\n", "m.ndjson")
    assert rejected[1]["metric"] == twice
    assert rejected[2]["metric"] == deep
    twice = twice.replace(', "mood": 1', "")
    counts, rejected = load(f'{{"errors": [], "file": "m", "line": 1, "metric": {twice}}}', "fixed.ndjson")
    assert (counts["rejected"], stack.stored(user)) == (1, [])
    assert rejected[1]["errors"][0]["detail"] == "the entry is damaged: a field is there twice"
    once = twice.replace(', "value": 99', "")
    counts, _ = load(json.dumps({"errors": [], "metric": once}), "text.ndjson", 0)
    assert counts["stored"] == 1
