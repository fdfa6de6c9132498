"""`metrics-ingest load`: files of metrics through ingest_batch, so that each is checked and accounted for.

A file goes in chunks of CHUNK metrics. A chunk's Idempotency-Key is made of its number and its first line, and a
metric without metric_id gets its identity from that key and its position: sent again, the same file stores nothing
twice, and a file that grew stores what is new.
"""

import csv
import gzip
import hashlib
import io
import itertools
import json
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from threading import Event, local
from typing import IO, Any

import click

from metrics_ingest.admin.console import JSON_OPTION, Refused, Unreachable, show

CHUNK = 1_000  # part of every derived identity: another number would store old files' metrics a second time
CHUNKS_A_REQUEST_WAITS = 2  # chunks read ahead for each connection
BACKOFF_S = (0.5, 1, 2, 5, 10)
RETRY = (429, 502, 503, 504)
TIMEOUT_S = 60
FIELDS = ("user_id", "metric_type", "value", "timestamp", "session_id", "metric_id")


@dataclass(slots=True)
class Chunk:
    """Some metrics of a file, as NDJSON lines; `lines` are their numbers in it, counted from 1."""

    name: str
    key: str
    metrics: list[bytes]
    lines: list[int]
    read_to: int  # bytes of the file that are read when it is done


@dataclass(slots=True)
class Total:
    """What became of all metrics: received = stored + duplicates + rejected."""

    received: int = 0
    stored: int = 0
    duplicates: int = 0
    rejected: int = 0


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--url", default="http://localhost:8000/ingest_batch/", show_default=True, help="Where ingest_batch is.")
@click.option("--api-key", envvar="METRICS_API_KEY", help="Sent as Authorization: Bearer. [env: METRICS_API_KEY]")
@click.option("--csv", "as_csv", is_flag=True, help="The input is CSV with a header (else where the name says .csv).")
@click.option("--parallel", default=4, show_default=True, type=click.IntRange(1, 64), help="Requests at a time.")
@click.option("--rejected", type=click.File("w"), help="Write what is rejected there, to be mended and loaded again.")
@click.option(
    "--retry-for", default=300.0, show_default=True, type=click.FloatRange(0), help="Seconds to go on trying."
)
@JSON_OPTION
def command(
    files: tuple[str, ...],
    url: str,
    api_key: str | None,
    as_csv: bool,
    parallel: int,
    rejected: IO[str] | None,
    retry_for: float,
    as_json: bool,
) -> None:
    """Send files of metrics through ingest_batch: NDJSON or CSV, packed with gzip or not; `-` is standard input.

    Interrupted, it can simply be run again: what is stored counts as a duplicate. Metrics without metric_id are told
    apart by their place in the file, so append to such a file but do not change it; to mend what was rejected, change
    the file that --rejected wrote, and load that.

    Exit code 1 says that some metrics were rejected, 3 that the function cannot be reached.
    """
    total = Total()
    sender = Sender(url, api_key, retry_for)
    try:
        with progress(files) as advance:
            for chunk, report in _sent(
                itertools.chain.from_iterable(_chunks(f, as_csv) for f in files), sender, parallel
            ):
                _count(total, chunk, report, rejected)
                advance(chunk, total)
    except KeyboardInterrupt:
        sender.stop.set()
        show(asdict(total), as_json=as_json)
        click.echo("interrupted; run it again to go on: nothing is lost, nothing is stored twice", err=True)
        sys.exit(130)
    show(asdict(total), as_json=as_json)
    if total.rejected:
        hint = f"; {rejected.name} has them" if rejected else "; --rejected FILE writes them down"
        click.echo(f"{total.rejected:,} metrics were rejected{hint}", err=True)
        sys.exit(1)


def _count(total: Total, chunk: Chunk, report: dict[str, Any], rejected: IO[str] | None) -> None:
    for count in ("received", "stored", "duplicates", "rejected"):
        setattr(total, count, getattr(total, count) + report[count])
    for index, errors in itertools.groupby(report["errors"], key=lambda error: error["index"]):
        if rejected:
            found = [{name: error[name] for name in ("code", "field", "detail", "metric_id")} for error in errors]
            entry = {
                "errors": found,
                "file": chunk.name,
                "line": chunk.lines[index],
                "metric": _readable(chunk.metrics[index]),
            }
            if isinstance(entry["metric"], dict) and found[0]["metric_id"]:  # the identity that it will keep
                entry["metric"].setdefault("metric_id", found[0]["metric_id"])
            rejected.write(json.dumps(entry) + "\n")


def _readable(line: bytes) -> Any:
    """The metric as JSON, or as the text that it is."""
    try:
        return json.loads(line)
    except ValueError:
        return line.decode(errors="replace")


def _chunks(path: str, as_csv: bool) -> Iterator[Chunk]:
    """The file's chunks: always the same for the same lines."""
    with ExitStack() as stack, _readable_or_refused(path):
        raw: Any = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb"))  # noqa: PTH123  # or stdin
        if not hasattr(raw, "peek"):
            raw = io.BufferedReader(raw)
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        file: Any = stack.enter_context(gzip.open(raw)) if packed else raw
        if as_csv or path.removesuffix(".gz").endswith(".csv"):
            text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
            lines = _csv_lines(text, path)
        else:
            lines = _json_lines(file)
        for number in itertools.count():
            taken = list(itertools.islice(lines, CHUNK))
            if not taken:
                return
            key = f"load-{number}-{hashlib.sha256(taken[0][1]).hexdigest()}"
            read_to = raw.tell() if raw.seekable() else 0
            yield Chunk(path, key, [line for _, line in taken], [at for at, _ in taken], read_to)


@contextmanager
def _readable_or_refused(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise Refused(f"{path}: {error}") from error


def _json_lines(file: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(file, 1):
        line = line.strip()
        if line.startswith(b'{"errors":'):  # what --rejected wrote
            with suppress(ValueError, KeyError):  # mended badly, it is refused like any other line
                metric = json.loads(line)["metric"]
                line = (" ".join(metric.split()) if isinstance(metric, str) else json.dumps(metric)).encode()
        if line:
            yield number, line


def _csv_lines(text: Iterable[str], path: str) -> Iterator[tuple[int, bytes]]:
    """Rows as JSON. An empty cell is a field that is not there; a value is a number, true or false."""
    rows = csv.DictReader(text)
    if unknown := set(rows.fieldnames or ()) - {*FIELDS, "received_at"}:
        raise Refused(f"{path}: a CSV of metrics has the columns {', '.join(FIELDS)}, not {', '.join(sorted(unknown))}")
    for row in rows:
        metric: dict[str, Any] = {name: row[name] for name in FIELDS if row.get(name)}
        if "value" in metric:
            metric["value"] = _value(metric["value"])
        yield rows.line_num, json.dumps(metric).encode()


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text  # it is refused there, and told with all else that is


class Sender:
    """Posts chunks, again and again while the function or its database is away."""

    def __init__(self, url: str, api_key: str | None, retry_for_s: float) -> None:
        try:
            import requests
        except ImportError:
            raise Refused("`load` needs requests: pip install 'metrics-ingest[cli]'") from None
        self._requests = requests
        self._url = url
        self._headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._retry_for_s = retry_for_s
        self._own = local()  # a requests.Session is for one thread
        self.stop = Event()

    def send(self, chunk: Chunk) -> dict[str, Any]:
        """The function's account of the chunk. Raise Refused for an answer that no retry changes, or Unreachable."""
        body = gzip.compress(b"\n".join(chunk.metrics), compresslevel=1)
        deadline = time.monotonic() + self._retry_for_s
        for attempt in itertools.count():
            pause = BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)] * random.uniform(0.5, 1)
            try:
                answer = self._session().post(
                    self._url, data=body, headers=self._headers | {"Idempotency-Key": chunk.key}, timeout=TIMEOUT_S
                )
            except (self._requests.ConnectionError, self._requests.Timeout) as error:
                reason = f"cannot reach {self._url}: {error}"
            except self._requests.RequestException as error:
                raise Refused(f"{self._url}: {error}") from error
            else:
                if answer.status_code not in RETRY:
                    return self._account(answer, chunk)
                reason = f"{self._url} answers {answer.status_code} {answer.reason}"
                pause = max(pause, float(answer.headers.get("Retry-After", "0") or 0))
            if time.monotonic() + pause > deadline:
                raise Unreachable(f"{reason}; run it again to go on")
            if self.stop.wait(pause):
                raise KeyboardInterrupt
        raise AssertionError

    def _session(self) -> Any:
        if not hasattr(self._own, "session"):
            self._own.session = self._requests.Session()
        return self._own.session

    def _account(self, answer: Any, chunk: Chunk) -> dict[str, Any]:
        try:
            told = answer.json()
        except ValueError:
            told = {}
        if isinstance(told, dict) and "received" in told and "errors" in told:
            return told
        detail = told.get("detail", answer.reason) if isinstance(told, dict) else answer.reason
        where = f"{chunk.name}, lines {chunk.lines[0]} to {chunk.lines[-1]}"
        raise Refused(f"{self._url} answers {answer.status_code} to {where}: {detail}")


def _sent(chunks: Iterator[Chunk], sender: Sender, parallel: int) -> Iterator[tuple[Chunk, dict[str, Any]]]:
    """Each chunk with its account, as they come; a few are read ahead, however long the file is."""
    with ThreadPoolExecutor(parallel) as pool:
        under_way: dict[Future[dict[str, Any]], Chunk] = {}
        try:
            for chunk in chunks:
                under_way[pool.submit(sender.send, chunk)] = chunk
                if len(under_way) >= parallel * CHUNKS_A_REQUEST_WAITS:
                    yield from _finished(under_way)
            while under_way:
                yield from _finished(under_way)
        finally:  # of those that wait none is begun; those that are sent are waited for, not to leave them unknown
            sender.stop.set()
            pool.shutdown(cancel_futures=True)


def _finished(under_way: dict[Future[dict[str, Any]], Chunk]) -> Iterator[tuple[Chunk, dict[str, Any]]]:
    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
    for future in done:
        yield under_way.pop(future), future.result()


@contextmanager
def progress(files: tuple[str, ...]) -> Iterator[Callable[[Chunk, Total], None]]:
    """A bar on a terminal that has rich: how far, how many a second, how long still. Else nothing."""
    try:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    except ImportError:
        yield lambda _chunk, _total: None
        return
    from pathlib import Path

    sizes = {path: Path(path).stat().st_size for path in files if path != "-"}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    from rich.console import Console

    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=sum(sizes.values()) if len(sizes) == len(files) else None)
        read = dict.fromkeys(files, 0)
        began = time.monotonic()

        def advance(chunk: Chunk, total: Total) -> None:
            read[chunk.name] = max(read[chunk.name], chunk.read_to)
            rate = total.received / (time.monotonic() - began)
            bar.update(task, completed=sum(read.values()), description=f"{total.received:,} metrics, {rate:,.0f}/s")

        yield advance
