"""`svcctl tls`, and svcctl towards services on https."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from common.http.serve import Address, bound_port, start, stop_serving
from common.http.tls import Tls, TlsFiles
from ctl.doctor.certificates import DAY_S, judged
from ctl.launcher import files, plan, variables
from ctl.launcher.plan import AGENT, REGISTRY, ROUTER, Listener
from ctl.launcher.variables import Variables
from tests.ctl.conftest import Suite
from tests.tls import Authority


def files_of(folder: Path, node: str, *, mutual: bool = False) -> TlsFiles:
    ca = folder / "ca.pem"
    return TlsFiles(folder / f"{node}.pem", folder / f"{node}.key", ca if mutual else None, ca)


async def test_init_makes_a_ca_and_nodes_that_openssl_and_our_services_believe(suite: Suite) -> None:
    folder = suite.home / "tls"
    done = await suite.ctl("tls", "init", "--dir", str(folder), "node-a", "node-b:10.0.0.2,node-b.lab,fd00::2")
    assert done.code == 0, done.stderr
    assert "node-b, 10.0.0.2, node-b.lab, fd00::2, localhost, 127.0.0.1, ::1" in done.stdout
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {
        **{f"{name}.key": "0o600" for name in ("ca", "node-a", "node-b")},
        **{f"{name}.pem": "0o644" for name in ("ca", "node-a", "node-b")},
    }
    for purpose in ("sslserver", "sslclient"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(folder / "ca.pem")]
        subprocess.run([*command, str(folder / "node-b.pem")], check=True)
    for node in ("node-a", "node-b"):
        assert Tls(files_of(folder, node, mutual=True)).material.expires_at == pytest.approx(
            time.time() + 825 * DAY_S, abs=300
        )
    shown = await suite.ctl("tls", "show", "--dir", str(folder), "--json")
    assert [one["days_left"] for one in shown.json["certificates"]] == [3649, 824, 824]


async def test_init_again_keeps_what_is_there_and_renews_what_it_is_told_to(suite: Suite) -> None:
    folder, words = suite.home / "tls", ("tls", "init", "--dir", str(suite.home / "tls"))
    await suite.ctl(*words, "node-a")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = await suite.ctl(*words, "node-a", "node-c", "--days", "3")
    assert f"kept {folder}/node-a.pem (--renew makes it anew)" in done.stderr
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert Tls(files_of(folder, "node-c")).server is not None
    await suite.ctl(*words, "--renew", "node-a")
    assert (folder / "node-a.pem").read_bytes() != before["node-a.pem"]
    assert (folder / "ca.pem").read_bytes() == before["ca.pem"]
    assert Tls(files_of(folder, "node-a")).server is not None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("ca",), "'ca' is no node's name"),
        (("../x",), "'../x' is no node's name"),
        (("n:a b",), "'a b' is no node's name"),
        (("n", "--days", "0"), "--days must be more than 0"),
        (("n", "--days", "9999"), "--days must be more than 0"),
    ],
)
async def test_what_is_no_node_is_refused(suite: Suite, words: tuple[str, ...], reason: str) -> None:
    done = await suite.ctl("tls", "init", "--dir", str(suite.home / "tls"), *words)
    assert (done.code, reason in done.stderr) == (2, True), done.stderr
    assert not list((suite.home / "tls").glob("n.*"))


async def test_without_the_package_its_name_and_the_remedy_are_told(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ctl.certificates", None)
    monkeypatch.delattr("ctl.certificates", raising=False)
    done = await suite.ctl("tls", "init", "--dir", str(suite.home / "tls"), "node-a")
    assert (done.code, "pip install 'inference-svc[tls]'" in done.stderr) == (78, True)


async def serving(tls: Tls) -> web.AppRunner:
    """A registry and a router of few words."""

    async def health(_request: web.Request) -> web.Response:
        return web.json_response({"status": "healthy", "registry": "running", "router": "running", "nodes": []})

    async def empty(_request: web.Request) -> web.Response:
        return web.json_response({"services": [], "replicas": [], "nodes": [], "total": 0})

    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_get("/{path:.*}", empty)
    return await start(app, Address("127.0.0.1", 0), drain_timeout_s=0, what="sample", tls=tls)


async def test_services_on_https_are_asked_with_the_ca_and_the_certificate_that_are_named(
    suite: Suite, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    runner = await serving(Tls(authority.files(mutual=True)))
    url = f"https://localhost:{bound_port(runner)}"
    cert, key = authority.issue("operator")
    mine = ("--tls-ca-file", str(authority.path), "--tls-cert-file", str(cert), "--tls-key-file", str(key))
    try:
        done = await suite.ctl("services", "--registry-url", url)
        assert (done.code, "its certificate is not believed" in done.stderr) == (3, True), done.stderr
        done = await suite.ctl("services", "--registry-url", url, *mine[:2])
        assert done.code == 3, done.stderr
        done = await suite.ctl("services", "--registry-url", url, *mine)
        assert done.code == 0, done.stderr
        done = await suite.ctl("services", "--registry-url", url, "--tls-ca-file", str(tmp_path / "nothing"))
        assert (done.code, f"CA file {tmp_path / 'nothing'}" in done.stderr) == (78, True)
        done = await suite.ctl("doctor", "--registry-url", url, "--router-url", url, *mine, "--json")
        found = [one for one in done.json["findings"] if one["check"] == "certificates"]
        assert [(one["verdict"], one["seen"]) for one in found] == [
            ("warn", f"the {name}'s holds for 29 more days") for name in ("registry", "router")
        ]
    finally:
        await stop_serving(runner)


@pytest.mark.parametrize(("days", "verdict"), [(-1, "fault"), (6.9, "fault"), (7.1, "warn"), (29, "warn"), (31, "ok")])
def test_a_certificate_that_ends_soon_is_a_fault(days: float, verdict: str) -> None:
    assert [one.verdict.value for one in judged("r", 1e9 + days * DAY_S, 1e9)] == [verdict]


def test_the_launcher_asks_by_https_where_a_file_or_a_variable_has_a_certificate(tmp_path: Path) -> None:
    config = tmp_path / "registry.toml"
    config.write_text('tls_cert_file = "/c"\ntls_key_file = "/k"\n')
    usual = Listener(18000)
    assert files.listener(str(config), None, usual, kind=REGISTRY, env={}).scheme == "https"
    assert files.listener(None, None, usual, kind=REGISTRY, env={"SVC_TLS_CERT_FILE": "/c"}).scheme == "https"
    assert files.listener(None, None, usual, kind=REGISTRY, env={"SVC_ROUTER_TLS_CERT_FILE": "/c"}).scheme == "http"
    node: dict[str, Any] = {"SVC_TLS_CERT_FILE": "/c"}
    router = variables.service(ROUTER, Variables(node))
    assert (router.url, router.args[-1]) == ("https://127.0.0.1:8000", "https://localhost:18000")
    alone = variables.service(AGENT, Variables({"SVC_AGENT_TLS_CERT_FILE": "/c"}))
    assert (alone.url, alone.args[-1]) == ("https://127.0.0.1:18100", "http://localhost:18000")
    assert plan.babysitter_url("10.0.0.1", 8100, "https") == "https://127.0.0.1:8101"
