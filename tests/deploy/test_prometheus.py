"""The configuration for Prometheus with its commented lines in force: each token is shown to whom it is for.

And all engines by one router's `/metrics/engines`: whatever they tell, Prometheus takes what can be read of it.
"""

import json
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.deploy.installed import ROOT
from tests.ports import free_port
from tests.ui.fleet import get, process, until

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
        "engines": True,
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


PAGE = b"""\
# HELP vllm:num_requests_running Requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",replica="rank-0"} 2.0
# HELP vllm:e2e_request_latency_seconds Time.
# TYPE vllm:e2e_request_latency_seconds histogram
vllm:e2e_request_latency_seconds_bucket{le="0.5"} 1
vllm:e2e_request_latency_seconds_bucket{le="+Inf"} 2
vllm:e2e_request_latency_seconds_sum 1.5
vllm:e2e_request_latency_seconds_count 2
"""
ENGINES: dict[str, tuple[bytes, str]] = {
    "well": (PAGE, "text/plain; version=1.0.0; charset=utf-8"),
    "other": (b"# TYPE vllm:num_requests_running counter\nvllm:num_requests_running NaN\n", "text/plain"),
    "html": (b"<html></html>", "text/html"),
    "binary": (b"\x00\xff", "text/plain"),
    "twice": (PAGE * 2, "text/plain"),
    "labels_twice": (b'a{b="1",b="2"} 1\n', "text/plain"),
    "huge": (b"a 1e999\n", "text/plain"),
    "late_stamp": (b"a 1 99999999999999999999\n", "text/plain"),
    "odd_type": (b"# TYPE a banana\na 1\n", "text/plain"),
    "crlf": (b"a 1\r\n", "text/plain"),
}


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is missing (Debian: apt install prometheus)")
def test_all_engines_are_one_scrape_that_prometheus_takes_whatever_one_of_them_tells_A21(tmp_path: Path) -> None:
    with ExitStack() as stack:
        services: list[dict[str, Any]] = []
        for name, (page, kind) in ENGINES.items():
            host, _, port = stack.enter_context(target(set(), page, kind)).partition(":")
            services.append({"name": name, "host": host, "port": int(port), "metadata": {"models": ["m"]}})
        (tmp_path / "static.json").write_text(json.dumps(services))
        digest = sha256(KEY.split()[1].encode()).hexdigest()
        (tmp_path / "keys.toml").touch(0o600)
        (tmp_path / "keys.toml").write_text(f'[[keys]]\nname = "prometheus"\nsha256 = "{digest}"\n')
        (tmp_path / "router-metrics.key").write_text(KEY.split()[1])
        (tmp_path / "registry-read.token").write_text(READ.split()[1])
        (tmp_path / "rules.yml").write_bytes((CONFIG.parent / "rules.yml").read_bytes())
        router = f"127.0.0.1:{free_port()}"
        flags = ("--router-port", router.partition(":")[2], "--workers", "1", "--static-services", "static.json")
        keys = ("--api-keys-file", "keys.toml")
        stack.enter_context(process(tmp_path, sys.executable, "-m", "router", *flags, *keys, log="router"))
        until("the router serves", lambda: get(f"http://{router}/health"))
        groups = json.dumps([{"targets": [router], "labels": {"job": "router", "service": "r"}}]).encode()
        discovery = stack.enter_context(target(set(), groups, "application/json"))
        config = tmp_path / "prometheus.yml"
        config.write_text(with_tokens(tmp_path, discovery))
        command = ("prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}")
        own = f"127.0.0.1:{free_port()}"
        stack.enter_context(process(tmp_path, *command, f"--web.listen-address={own}", log="prometheus"))

        def query(expression: str) -> list[dict[str, str]]:
            answer = json.loads(get(f"http://{own}/api/v1/query?query={quote(expression)}"))
            return [one["metric"] for one in answer["data"]["result"]]

        until("it is scraped", lambda: query('up{job="engines"} == 1'))
        until("the engine is", lambda: query("vllm:num_requests_running == 2"))
        outcomes = query("svc_router_engine_metrics_outcome == 1")
        [well] = query("vllm:num_requests_running == 2")
        [other] = query("vllm:num_requests_running != vllm:num_requests_running")
        buckets = query("vllm:e2e_request_latency_seconds_bucket")
        assert query("a") == []
        assert [one["job"] for one in query("up == 0")] == []
    assert (well["replica"], well["exported_replica"], well["engine"]) == ("well", "rank-0", "0")
    assert other["replica"] == "other"
    assert {(one["replica"], one["le"]) for one in buckets} == {("well", "0.5"), ("well", "+Inf")}
    told = {one["replica"]: one["outcome"] for one in outcomes}
    assert told == {name: "told" if name in ("well", "other") else "unreadable" for name in ENGINES}
