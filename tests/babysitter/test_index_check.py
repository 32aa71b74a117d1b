"""Why an index gives nothing, told apart: name, TLS, proxy, refusal, login, a page that is missing (W28)."""

import base64
import contextlib
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from babysitter.cbclient.index_check import examine
from babysitter.cbclient.packages import Index, PipFault, fault_of, split_index
from tests.ports import free_port

LOGIN = "Basic " + base64.b64encode(b"someone:secret").decode()


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = int(self.path.split("/")[1])
        if status == 401 and self.headers["Authorization"] == LOGIN:
            status = 200
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_CONNECT(self) -> None:
        self.send_error(407)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on loopback whose answers have the status that its paths name."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def look(url: str, ca_file: Path | None = None) -> PipFault | None:
    return examine(split_index(url), "pkg", ca_file=ca_file)


@pytest.mark.parametrize(
    ("status", "word", "retry", "told"),
    [
        (401, "index_refused", False, "set a login"),
        (403, "index_refused", False, "set a login"),
        (404, "not_found", False, "no such package, or is not at this URL"),
        (503, "index_unreachable", True, "answers 503"),
    ],
)
def test_index_that_refuses_is_told_by_its_status_W28(status: int, word: str, retry: bool, told: str) -> None:  # noqa: FBT001 - a row
    with serving() as port:
        fault = look(f"http://127.0.0.1:{port}/{status}/")
    assert fault is not None
    assert (fault.word, fault.retry) == (word, retry)
    assert told in str(fault.text)


def test_index_with_the_page_has_no_fault_and_gets_the_login() -> None:
    with serving() as port:
        assert look(f"http://127.0.0.1:{port}/200/") is None
        assert look(f"http://someone:secret@127.0.0.1:{port}/401/") is None


def test_certificate_that_nobody_vouches_for_is_told_with_its_remedy_W28(tmp_path: Path) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with serving(context) as port:
        fault = look(f"https://localhost:{port}/200/")
        assert fault is not None
        assert (fault.word, fault.retry) == ("index_tls", False)
        assert "set cbclient.ca_file or PIP_CERT" in str(fault.text)
        assert look(f"https://localhost:{port}/200/", tmp_path / "ca.pem") is None


def test_name_and_port_that_lead_nowhere_are_told_apart_W28() -> None:
    nowhere, closed = look("http://index.invalid/"), look(f"http://127.0.0.1:{free_port()}/")
    assert nowhere is not None
    assert closed is not None
    assert (nowhere.word, closed.word) == ("index_name", "index_unreachable")
    assert "index.invalid/pkg/" in str(nowhere.text)
    assert "refused" in str(closed.text)


def test_proxy_that_refuses_is_told_without_its_password_W28(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://someone:secret@127.0.0.1:{port}")
        fault = look("https://index.example/")
        assert fault is not None
        assert (fault.word, fault.retry) == ("index_proxy", False)
        assert f"through the proxy 127.0.0.1:{port}" in str(fault.text)
        assert "secret" not in str(fault.text)
        monkeypatch.setenv("NO_PROXY", "index.invalid")
        other = look("https://index.invalid/")
        assert other is not None
        assert other.word == "index_name"


def test_index_without_tls_that_pip_ignores_is_no_missing_package_W28() -> None:
    told = (
        "WARNING: The repository located at 10.9.9.9 is not a trusted or secure host and is being ignored.\nERROR: No"
    )
    fault = fault_of(told)
    assert fault.word == "index_untrusted"
    assert "cbclient.trusted_hosts" in str(fault.text)


def test_url_that_is_none_is_told() -> None:
    fault = examine(Index("nonsense", None), "pkg", ca_file=None)
    assert fault is not None
    assert "is no index URL" in str(fault.text)
