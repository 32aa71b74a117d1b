"""CAs that are read late: not before a connection, and then all of them, on every loop and for sockets that block."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from common import late_cas
from tests.tls import Authority

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's context whose CA is the system's."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("node"))
    return context


async def connect(shown: ssl.SSLContext, context: ssl.SSLContext) -> None:
    async def leave(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(leave, "127.0.0.1", 0, ssl=shown) as server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        writer.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_cas_are_read_for_the_first_connection_and_believed(run: Run, shown: ssl.SSLContext) -> None:
    context = late_cas.create_default_context(cadata=None)
    assert context.cert_store_stats()["x509"] == 0
    run(connect(shown, context))
    assert context.cert_store_stats()["x509"] == 1


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_stranger_is_refused(run: Run, shown: ssl.SSLContext, tmp_path: Path) -> None:
    shown.load_cert_chain(*Authority(tmp_path / "other").issue("node"))
    with pytest.raises(ssl.SSLCertVerificationError):
        run(connect(shown, late_cas.create_default_context()))


def test_a_socket_that_blocks_is_checked_by_them(shown: ssl.SSLContext) -> None:
    ours, theirs = socket.socketpair()
    serving = threading.Thread(target=lambda: shown.wrap_socket(theirs, server_side=True).close())
    serving.start()
    with late_cas.create_default_context().wrap_socket(ours, server_hostname="localhost") as checked:
        assert checked.version() in ("TLSv1.2", "TLSv1.3")
    serving.join()


def test_it_is_as_the_usual_one_but_for_the_cas() -> None:
    late, usual = late_cas.create_default_context(), ssl.create_default_context()
    for member in ("options", "verify_flags", "verify_mode", "check_hostname", "minimum_version", "maximum_version"):
        assert getattr(late, member) == getattr(usual, member), member
