"""What TLS refuses: of files, of clients, of servers; by Python's ssl, by openssl and by curl."""

import asyncio
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
import uvloop
from aiohttp import web

from common.exits import ConfigurationError
from common.http import tls_listener
from common.http.client import make_session
from common.http.serve import Address, bound_port, start, stop_serving
from common.http.tls import Tls, TlsFiles, TlsMaterial
from tests.tls import Authority


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@asynccontextmanager
async def serving(tls: Tls, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """A service that says whose certificate its client showed."""

    async def hello(request: web.Request) -> web.Response:
        assert request.transport is not None
        peer = request.transport.get_extra_info("peercert") or {}
        return web.json_response({"secure": request.secure, "peer": bool(peer)})

    app = web.Application()
    app.router.add_get("/", hello)
    runner = await start(app, Address(host, 0), drain_timeout_s=1, what="sample", tls=tls)
    try:
        yield bound_port(runner)
    finally:
        await stop_serving(runner)


async def ask(port: int, context: ssl.SSLContext, host: str = "localhost") -> dict[str, Any]:
    async with make_session(timeout_s=5, tls=context) as session, session.get(f"https://{host}:{port}/") as answer:
        content: dict[str, Any] = await answer.json()
        return content


async def run(*command: str) -> tuple[int, str]:
    made = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(made.communicate(), 60)
    return made.returncode or 0, said.decode(errors="replace")


async def test_service_with_a_certificate_is_asked_over_https_by_name_and_by_address(authority: Authority) -> None:
    tls = Tls(authority.files())
    async with serving(tls) as port:
        for host in ("localhost", "127.0.0.1"):
            assert await ask(port, tls.client, host) == {"secure": True, "peer": False}
        code, said = await run("curl", "-sS", "--cacert", str(authority.path), f"https://localhost:{port}/")
        assert (code, said) == (0, '{"secure": true, "peer": false}')
        code, said = await run("curl", "-sS", f"http://localhost:{port}/")
        assert code != 0, said


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
async def test_protocol_below_1_2_is_refused(authority: Authority, version: str) -> None:
    async with serving(Tls(authority.files())) as port:
        weak = ("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-cipher", "DEFAULT:@SECLEVEL=0")
        assert (await run(*weak, version))[0] != 0
        assert (await run(*weak, "-tls1_2"))[0] == 0
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(aiohttp.ClientConnectorError):
            await ask(port, old)


async def test_client_has_to_show_a_certificate_that_the_ca_signed(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger")
    ours = Tls(authority.files(mutual=True))
    none = Tls(TlsFiles(ca=authority.path))
    cert, key = stranger.issue("client")
    other = Tls(TlsFiles(ca=authority.path, client_cert=cert, client_key=key))
    expired = ssl.create_default_context(cafile=str(authority.path))
    expired.load_cert_chain(*authority.issue("old", days=-1))
    with structlog.testing.capture_logs() as lines:
        async with serving(ours) as port:
            assert await ask(port, ours.client) == {"secure": True, "peer": True}
            for context in (none.client, other.client, expired):
                with pytest.raises(aiohttp.ClientError):
                    await ask(port, context)
            address = f"https://localhost:{port}/"
            trusting = ("curl", "-sS", "--cacert", str(authority.path), address)
            assert (await run(*trusting))[0] != 0
            assert (await run(*trusting, "--cert", str(cert), "--key", str(key)))[0] != 0
            cert, key = authority.issue("client")
            assert (await run(*trusting, "--cert", str(cert), "--key", str(key)))[0] == 0
    assert [line["event"] for line in lines if line["log_level"] == "warning"][:1] == ["tls.handshake_failed"]


async def test_our_clients_refuse_a_strangers_an_expired_and_another_hosts_certificate(
    authority: Authority, tmp_path: Path
) -> None:
    tls = Tls(authority.files())
    async with serving(tls) as port:
        with pytest.raises(aiohttp.ClientConnectorCertificateError, match=r"self-signed|unable to get local issuer"):
            await ask(port, Tls(TlsFiles(ca=Authority(tmp_path / "other").path)).client)
        cert, key = authority.issue("named", "node-b.example.org")
        tls.put(Tls(TlsFiles(cert, key)).material)
        with pytest.raises(aiohttp.ClientConnectorCertificateError, match="not valid for 'localhost'"):
            await ask(port, Tls(TlsFiles(ca=authority.path)).client)
    expired = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    expired.load_cert_chain(*authority.issue("old", days=-1))
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=expired)
    with pytest.raises(aiohttp.ClientConnectorCertificateError, match="expired"):
        await ask(server.sockets[0].getsockname()[1], tls.client)
    server.close()


async def test_new_certificate_is_shown_from_the_next_connection_on_and_none_is_dropped(authority: Authority) -> None:
    tls = Tls(authority.files())
    async with serving(tls) as port:
        before = await shown(port, authority)
        reader, writer = await asyncio.open_connection("localhost", port, ssl=tls.client)
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b'"peer": false}')
            authority.issue("node", days=60)
            tls.put(tls.read())
        assert await shown(port, authority) != before
        writer.close()
    assert tls.material.expires_at == pytest.approx(time.time() + 60 * 86400, abs=120)


async def shown(port: int, authority: Authority) -> bytes:
    """The certificate that a client sees."""
    context = ssl.create_default_context(cafile=str(authority.path))
    _, writer = await asyncio.open_connection("localhost", port, ssl=context)
    der: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return der


async def test_clients_of_a_ca_that_is_taken_away_are_refused_at_once(authority: Authority, tmp_path: Path) -> None:
    former = Authority(tmp_path / "former")
    files = authority.files()
    accepted = tmp_path / "accepted.pem"
    accepted.write_bytes(authority.path.read_bytes() + former.path.read_bytes())
    tls = Tls(TlsFiles(files.cert, files.key, accepted, files.ca))
    cert, key = former.issue("client")
    client = Tls(TlsFiles(ca=authority.path, client_cert=cert, client_key=key)).client
    async with serving(tls) as port:
        assert (await ask(port, client))["peer"]
        accepted.write_bytes(authority.path.read_bytes())
        tls.put(tls.read())
        with pytest.raises(aiohttp.ClientError):
            await ask(port, client)
        assert (await ask(port, tls.client))["peer"]


async def test_clients_that_connect_and_say_nothing_are_bounded_in_time_and_number(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_listener, "HANDSHAKE_S", 1.0)
    monkeypatch.setattr(tls_listener, "HANDSHAKES_AT_ONCE", 3)
    tls = Tls(authority.files())
    async with serving(tls) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        async with asyncio.timeout(5):  # two are too many
            assert [await reader.read() for reader, _ in silent[3:]] == [b"", b""]
        async with asyncio.timeout(20):  # and the others have had their time
            assert [await reader.read() for reader, _ in silent[:3]] == [b"", b"", b""]
        assert (await ask(port, tls.client))["secure"]
        for _, writer in silent:
            writer.close()


async def test_stop_ends_handshakes_that_are_under_way(authority: Authority) -> None:
    async with serving(Tls(authority.files())) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_taken_port_is_told_with_tls_as_without(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"sample: 127.0.0.1:{port} is taken"):
            await start(
                web.Application(),
                Address("127.0.0.1", port),
                drain_timeout_s=1,
                what="sample",
                tls=Tls(authority.files()),
            )


def test_files_of_no_use_are_refused_by_name(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("node")
    other, other_key = authority.issue("other")
    old, old_key = authority.issue("old", days=-1)
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing")
    nothing.chmod(0o600)
    readable = tmp_path / "readable.key"
    readable.write_bytes(key.read_bytes())
    readable.chmod(0o640)
    secret = tmp_path / "secret.key"
    command = ["openssl", "pkcs8", "-topk8", "-in", str(key), "-out", str(secret), "-passout", "pass:secret"]
    subprocess.run(command, check=True)
    secret.chmod(0o600)
    refusals = {
        (cert, None): "tls_cert_file and tls_key_file need each other",
        (cert, tmp_path / "absent"): "No such file",
        (cert, readable): f"tls_key_file {readable}: others can read it; run: chmod 600 {readable}",
        (cert, other_key): "the key is not the certificate's",
        (old, old_key): f"tls_cert_file {old}: certificate has expired",
        (nothing, key): f"tls_cert_file {nothing} with tls_key_file {key}: no certificate and key in PEM",
        (cert, nothing): "no certificate and key in PEM",
        (cert, secret): "without a passphrase",
    }
    for (one, its_key), reason in refusals.items():
        with pytest.raises(ConfigurationError) as caught:
            Tls(TlsFiles(one, its_key))
        assert reason in str(caught.value)
    for files in (TlsFiles(other, other_key, client_ca=nothing), TlsFiles(ca=nothing)):
        with pytest.raises(ConfigurationError, match=f"CA file {nothing}"):
            Tls(files)
    with pytest.raises(ConfigurationError, match="tls_client_ca_file needs tls_cert_file"):
        Tls(TlsFiles(client_ca=authority.path))
    with pytest.raises(ConfigurationError, match=r"tls_client_cert_file .*expired"):
        Tls(TlsFiles(client_cert=old, client_key=old_key))


def test_pair_in_force_stays_when_the_next_is_of_no_use_and_when_it_expires(authority: Authority) -> None:
    tls = Tls(authority.files())
    before = tls.material
    authority.issue("node", days=-1)
    with pytest.raises(ConfigurationError, match="expired"):
        tls.read()
    assert tls.material is before
    expired = Tls()
    expired._files, expired.material = tls._files, read_tls_unjudged(tls._files)
    assert expired.read() == expired.material  # else a changed setting would not be taken either
    assert "KEY" not in repr(before)


def read_tls_unjudged(files: TlsFiles) -> TlsMaterial:
    """What is in force once a certificate has expired."""
    assert files.cert is not None
    assert files.key is not None
    assert files.ca is not None
    pair = files.cert.read_bytes() + b"\n" + files.key.read_bytes()
    return TlsMaterial(pair, None, pair, files.ca.read_text(), 1.0)
