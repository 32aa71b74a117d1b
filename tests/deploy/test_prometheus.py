"""The configuration for Prometheus with its commented lines in force: each token is shown to whom it is for."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.deploy.installed import ROOT
from tests.ports import free_port
from tests.ui.fleet import process, until

CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
READ, KEY = "Bearer of-the-registry", "Bearer of-the-router"


@contextmanager
def target(shown: set[str | None], page: bytes = b"", kind: str = "text/plain") -> Iterator[str]:
    """Answers every GET with `page` at the `HOST:PORT` given, and keeps the `Authorization` that it is shown."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.add(self.headers["Authorization"])
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the base class named it
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def with_tokens(folder: Path, registry: str) -> str:
    """The file as an operator with tokens and keys changes it, for a registry at this address."""
    text = re.sub(r"^( +)# (?=authorization:|- job|  )", r"\1", CONFIG.read_text(), flags=re.MULTILINE)
    text = text.replace("regex: registry, action: drop", "regex: registry|router, action: drop")
    text = text.replace("localhost:18000", registry).replace("/etc/inference-svc", str(folder)).replace("15s", "1s")
    jobs = {job["job_name"]: job for job in yaml.safe_load(text)["scrape_configs"]}
    assert {name: "authorization" in job for name, job in jobs.items()} == {
        "registry": True,
        "fleet": False,
        "router": True,
    }
    return text


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is missing (Debian: apt install prometheus)")
def test_each_target_is_shown_its_own_token_and_no_other(tmp_path: Path) -> None:
    shown: dict[str, set[str | None]] = {job: set() for job in ("discovery", "registry", "router", "babysitter")}
    with (
        target(shown["registry"]) as registry,
        target(shown["router"]) as router,
        target(shown["babysitter"]) as sitter,
    ):
        found = {"registry": registry, "router": router, "babysitter": sitter}
        groups = [{"targets": [address], "labels": {"job": job}} for job, address in found.items()]
        with target(shown["discovery"], json.dumps(groups).encode(), "application/json") as discovery:
            (tmp_path / "registry-read.token").write_text(READ.split()[1])
            (tmp_path / "router-metrics.key").write_text(KEY.split()[1])
            (tmp_path / "rules.yml").write_bytes((CONFIG.parent / "rules.yml").read_bytes())
            config = tmp_path / "prometheus.yml"
            config.write_text(with_tokens(tmp_path, discovery))
            command = ("prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}")
            listen = f"--web.listen-address=127.0.0.1:{free_port()}"
            with process(tmp_path, *command, listen, log="prometheus"):
                until("everything is scraped", lambda: all(shown.values()))
    assert shown == {"discovery": {READ}, "registry": {READ}, "router": {KEY}, "babysitter": {None}}
