"""CORS_ORIGINS with any subdomain and any port."""

import pytest

from metrics_ingest.http.cors import Cors
from metrics_ingest.settings import BadSetting, Settings


def environment(origins: str) -> dict[str, str]:
    return {"DATABASE_URL": "postgresql://nobody@localhost/none", "ALLOW_ANONYMOUS": "true", "CORS_ORIGINS": origins}


def allowed(origins: str, origin: str) -> dict[bytes, bytes]:
    cors = Cors(Settings.from_environment(environment(origins)).cors_origins)
    return dict(cors.fields([(b"host", b"x"), (b"origin", origin.encode())]))


@pytest.mark.parametrize(
    ("origins", "origin"),
    [
        ("https://*.example.com", "https://app.example.com"),
        ("https://*.example.com", "https://a.b-c.example.com"),
        ("https://*.example.com:8443", "https://app.example.com:8443"),
        ("http://localhost:*", "http://localhost:3000"),
        ("http://localhost:*", "http://localhost"),
        ("https://other.example, http://*.localhost:*", "http://a.localhost:1"),
        ("http://[::1]:*", "http://[::1]:5173"),
    ],
)
def test_a_pattern_allows_the_origin_itself_with_credentials(origins: str, origin: str) -> None:
    fields = allowed(origins, origin)
    assert fields[b"access-control-allow-origin"] == origin.encode()
    assert fields[b"access-control-allow-credentials"] == b"true"
    assert fields[b"vary"] == b"Origin"


@pytest.mark.parametrize(
    ("origins", "origin"),
    [
        ("https://*.example.com", "https://example.com"),
        ("https://*.example.com", "http://app.example.com"),
        ("https://*.example.com", "https://app.example.com:8443"),
        ("https://*.example.com", "https://app.example.com.evil.example"),
        ("https://*.example.com", "https://appexample.com"),
        ("https://*.example.com", "https://app.examplexcom"),
        ("https://*.example.com", "https://evil.example/.example.com"),
        ("https://*.example.com", "https://evil.example#.example.com"),
        ("https://*.example.com", "https://.example.com"),
        ("https://*.example.com", "https://app.example.com\n"),
        ("https://*.example.com", "https://app\r\nx.example.com"),
        ("http://localhost:*", "http://localhost.evil.example"),
        ("http://localhost:*", "http://localhost:80.evil.example"),
        ("http://localhost:*", "http://localhost:"),
        ("http://localhost:*", "null"),
        ("http://localhost:*", ""),
    ],
)
def test_a_pattern_allows_nothing_else(origins: str, origin: str) -> None:
    assert allowed(origins, origin) == {b"vary": b"Origin"}


@pytest.mark.parametrize(
    "origins",
    ["https://*", "https://app.*.com", "https://*example.com", "https://a*.example.com", "http://localhost:30*",
     "*.example.com", "http://*:*", "https://*.", "https://*.*.example.com", "*://localhost"],
)  # fmt: skip
def test_other_patterns_stop_the_start(origins: str) -> None:
    with pytest.raises(BadSetting, match="CORS_ORIGINS must be"):
        Settings.from_environment(environment(origins))
