"""The files of the page, read once and sent with an ETag."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import PurePosixPath

from starlette.responses import Response

from metrics_ingest.http.headers import Headers
from metrics_ingest.http.replies import Reply

MEDIA_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".txt": b"text/plain; charset=utf-8",
}
INDEX = "index.html"


@dataclass(frozen=True, slots=True)
class File:
    """A file as it is sent."""

    content: bytes
    media_type: bytes
    etag: bytes


@cache
def files() -> dict[str, File]:
    """Every file of the page by its path below static/. There is no other path, so none can leave the folder."""
    found: dict[str, File] = {}
    folders = [(PurePosixPath(), resources.files("metrics_ingest.dashboard") / "static")]
    for path, folder in folders:
        for entry in folder.iterdir():
            name = path / entry.name
            if entry.is_dir():
                folders.append((name, entry))
            elif name.suffix in MEDIA_TYPES:
                content = entry.read_bytes()
                etag = b'"%s"' % hashlib.sha256(content).hexdigest()[:32].encode()
                found[str(name)] = File(content, MEDIA_TYPES[name.suffix], etag)
    return found


def send(path: str, headers: Headers) -> Response | None:
    """The file at this path, 304 when the client has it already, None when there is no such file."""
    file = files().get(path)
    if file is None:
        return None
    fields = [(b"etag", file.etag), (b"cache-control", b"no-cache")]  # kept, but asked for again before each use
    known = [tag.strip().removeprefix(b"W/") for tag in headers.get(b"if-none-match", b"").split(b",")]
    if file.etag in known or known == [b"*"]:
        return Response(status_code=304, headers={name.decode(): value.decode() for name, value in fields})
    return Reply(200, file.content, fields, file.media_type)
