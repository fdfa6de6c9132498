"""`metrics-ingest load`: send files of metrics through ingest_batch, which validates and counts each metric."""

import itertools
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import IO, Any

import click

from metrics_ingest.admin.console import JSON_OPTION, print_record, printable
from metrics_ingest.admin.files import Chunk, parse_unique, read_chunks
from metrics_ingest.admin.sending import COUNTS, BatchReport, Sender, send_all


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--url", envvar="METRICS_URL", default="http://localhost:8000/ingest_batch/", show_default=True,
              help="Where ingest_batch is, or the address that all functions share. [env: METRICS_URL]")  # fmt: skip
@click.option("--api-key", envvar="METRICS_API_KEY", help="The API key to send. [env: METRICS_API_KEY]")
@click.option("--csv", "as_csv", is_flag=True, help="Read all files as CSV. [default: those named .csv or .csv.gz]")
@click.option("--parallel", default=4, show_default=True, type=click.IntRange(1, 64), help="Requests at a time.")
@click.option("--rejected", type=click.File("w"), help="Write rejected metrics to this file, to be fixed and loaded.")
@click.option(
    "--register-users",
    is_flag=True,
    help="Register users that the files name and nobody knows; the id becomes the name.",
)
@click.option("--users-url", help="Where users is. [default: beside ingest_batch]")
@click.option("--retry-for", "retry_for_s", default=300.0, show_default=True, type=click.FloatRange(0),
              help="Seconds to retry a request for.")  # fmt: skip
@JSON_OPTION
def command(
    files: tuple[str, ...], as_csv: bool, parallel: int, rejected: IO[str] | None, register_users: bool,
    users_url: str | None, url: str, as_json: bool, **connection: Any,
) -> None:  # fmt: skip
    """Send FILES of metrics through ingest_batch.

    They are NDJSON (a JSON object per line), CSV with a header and commas, or a JSON document of up to 64 MiB (an array
    of metrics, or {"metrics": [...]}), in UTF-8 or UTF-16, also compressed with gzip; `-` is standard input.

    If it is interrupted, run it again: metrics that are stored already count as duplicates. Metrics without a
    metric_id are identified by their line, so append to such a file, but do not change its lines. To fix rejected
    metrics, edit the file that --rejected wrote, and load that.

    Exit code 1 means that some metrics were rejected, 3 that ingest_batch cannot be reached.
    """
    total: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    reasons = Reasons()
    if re.fullmatch("https?://[^/]+/?", url):
        url = url.rstrip("/") + "/ingest_batch/"
    beside = url.rstrip("/").rpartition("/")[0] + "/users/"
    sender = Sender(url, **connection, users_url=users_url or beside if register_users else None)
    chunks = itertools.chain.from_iterable(read_chunks(file, as_csv) for file in files)
    interrupted = False
    length = sum(Path(file).stat().st_size for file in files if file != "-")
    hidden = "-" in files or not sys.stderr.isatty()
    try:
        with click.progressbar(length=length, label="sending", file=sys.stderr, hidden=hidden) as bar:
            for chunk, report in send_all(chunks, sender, parallel):
                total.update({name: report[name] for name in COUNTS})
                reasons.add(report)
                if rejected:
                    _write_rejected(rejected, chunk, report)
                bar.update(chunk.bytes_read)
    except KeyboardInterrupt:
        interrupted = True
    print_record(dict(total), as_json=as_json, title="metrics")
    if interrupted:
        click.echo("interrupted; run it again to continue: nothing is lost, nothing is stored twice", err=True)
        sys.exit(130)
    if total["rejected"]:
        hint = f"{rejected.name} contains them" if rejected else "--rejected FILE writes them to a file"
        click.echo(f"{total['rejected']:,} of {total['received']:,} metrics were rejected; {hint}", err=True)
        reasons.print()
        sys.exit(1)


class Reasons:
    """Why metrics were rejected: how many by code, and an example of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, report: BatchReport) -> None:
        """Count the first fault of each rejected metric."""
        for _, group in itertools.groupby(report["errors"], key=lambda error: error["index"]):
            first = next(group)
            self._counts[first["code"]] += 1
            self._examples.setdefault(first["code"], first["detail"])

    def print(self) -> None:
        """Print a line for each code to standard error, the most frequent first."""
        for code, count in self._counts.most_common():
            click.echo(f"  {count:,} {code}, such as: {printable(self._examples[code])}", err=True)


def _write_rejected(file: IO[str], chunk: Chunk, report: BatchReport) -> None:
    """Write an entry for each rejected metric, which `load` reads again (files.py)."""
    for index, group in itertools.groupby(report["errors"], key=lambda error: error["index"]):
        errors = [{name: error[name] for name in ("code", "field", "detail", "metric_id")} for error in group]
        line = chunk.lines[index]
        if line.fault:  # it says what is wrong in the file; the function's errors are about what was sent instead
            errors = [{"code": line.fault.code, "field": None, "detail": line.fault.detail, "metric_id": None}]
        metric = _json_or_text(line.metric)
        if isinstance(metric, dict) and errors[0]["metric_id"]:  # the identity that it must keep when it is fixed
            metric.setdefault("metric_id", errors[0]["metric_id"])
        entry = {"errors": errors, "file": chunk.file, "line": line.number, "metric": metric}
        file.write(json.dumps(entry) + "\n")


def _json_or_text(line: bytes) -> Any:
    try:
        return parse_unique(line)
    except (ValueError, RecursionError):
        return line.decode(errors="replace")
