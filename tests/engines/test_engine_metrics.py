"""What real engines tell of themselves: in the babysitter's report and metrics, in `svcctl top`, on the router's one page."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.babysitter.real import PROJECT
from tests.engines.catalogue import ENGINES
from tests.engines.harness import EngineNode, Fleet, engine_node, fleet, until

pytestmark = [pytest.mark.world, pytest.mark.timeout(1800)]
PROMPT = "the quick brown fox jumps over the lazy dog " * 20
CLIENTS = 24
"""More than either engine works on at once."""
HITS = {"llama_cpp": "llamacpp:prompt_tokens_cached_total", "vllm": "vllm:prefix_cache_hits_total"}
TOLD = ("svc_router_engine_metrics_outcome", {"replica": "r1-server", "outcome": "told"}, 1.0)
FIGURES = {
    "running": "engine_requests_running",
    "waiting": "engine_requests_waiting",
    "kv_cache_usage": "engine_kv_cache_usage_ratio",
    "prefix_query_tokens": "engine_prefix_cache_query_tokens_total",
    "prefix_hit_tokens": "engine_prefix_cache_hit_tokens_total",
}


def samples(url: str) -> list[tuple[str, dict[str, str], float]]:
    """A page, as Prometheus' own client reads it."""
    page = httpx.get(url, timeout=20).raise_for_status().text
    families = text_string_to_metric_families(page)
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def chat(where: Fleet, node: EngineNode, **more: Any) -> Any:
    body = {"model": node.model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4, **more}
    return httpx.post(f"{where.url}/v1/chat/completions", json=body, timeout=600).raise_for_status().json()


@contextmanager
def load(where: Fleet, node: EngineNode) -> Iterator[None]:
    """Long answers, one after the other, for as many clients as the engine cannot serve at once."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            chat(where, node, max_tokens=300, ignore_eos=True)

    clients = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        ended.set()
        for client in clients:
            client.join()


def top(where: Fleet, node: EngineNode) -> dict[str, Any]:
    """What `svcctl top` says of the engine."""
    env = {**os.environ, "SVC_REGISTRY_URL": where.registry.url, "SVC_ROUTER_URL": where.url}
    argv = [sys.executable, "-m", "ctl", "top", "--once", "--interval", "0.1", "--json"]
    said = subprocess.run(argv, cwd=PROJECT, env=env, check=True, capture_output=True, timeout=60).stdout
    return dict(next(row["engine"] for row in json.loads(said)["replicas"] if row["name"] == node.name))


@pytest.mark.parametrize("name", ["llama_cpp", "vllm"])
def test_what_an_engine_tells_is_told_everywhere_under_one_name(tmp_path: Path, name: str) -> None:
    tells_cache = name == "vllm"
    more = {"probes": {"interval_s": 0.2}, "restarts": {"restart_delay": 60, "heartbeat_interval": 0.5}}
    with (
        fleet(tmp_path) as where,
        engine_node(name, tmp_path / "e", registry=where.registry.url, name="r1", **more) as node,
    ):
        node.start()
        pid = node.ready()
        where.until_routed(node.model)
        first = until("the first figures", lambda: "running" in (r := node.report()) and r)
        assert ("kv_cache_usage" in first) is tells_cache
        before = first["prefix_hit_tokens"]
        cached = [chat(where, node)["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(2)]
        assert cached[1] > 100
        found = until("hits", lambda: (r := node.report()).get("prefix_hit_tokens", 0) > before and r)
        assert found["prefix_hit_tokens"] - before == sum(cached)
        assert found["prefix_query_tokens"] > found["prefix_hit_tokens"]

        with load(where, node):

            def at_work() -> Any:
                report = node.report()
                is_full = report.get("running", 0) > 0 and report.get("waiting", 0) > 0
                return is_full and (report.get("kv_cache_usage", 0) > 0 or not tells_cache) and report

            report = until("it runs and waits", at_work)
            page = until(
                "its page came in time", lambda: TOLD in (page := samples(f"{where.url}/metrics/engines")) and page
            )
        print({name: report.get(name) for name in FIGURES})  # noqa: T201 - the figures of this row
        assert {labels["replica"] for _, labels, _ in page} == {"r1-server"}
        own = {(family, frozenset(labels.items())) for family, labels, _ in samples(f"{node.url}/metrics")}
        of_all = {(family, frozenset({**labels}.items() - {("replica", "r1-server")})) for family, labels, _ in page}
        assert own <= of_all
        [hits] = [value for family, _, value in page if family == HITS[name]]
        assert hits >= found["prefix_hit_tokens"]

        until("it is idle", lambda: node.report().get("running") == 0)

        def in_metrics_as_in_report() -> bool:
            told = {family: value for family, _, value in samples(f"http://127.0.0.1:{node.port + 1}/metrics")}
            report = node.report()
            return "running" in report and all(told.get(FIGURES[member]) == report.get(member) for member in FIGURES)

        until("both tell the same", in_metrics_as_in_report)
        seen = until("top tells it", lambda: (one := top(where, node))["running"] == 0 and one)
        assert 0 < seen["prefix_hit_share"] < 1
        assert (seen["kv_cache_usage"] is not None) is tells_cache

        os.kill(pid, 9)
        until("what a dead engine told is gone", lambda: not set(FIGURES) & set(node.report()))
        until("the page is without it", lambda: len(samples(f"{where.url}/metrics/engines")) <= 1)


@pytest.mark.parametrize("name", [name for name, engine in ENGINES.items() if not engine.has_metrics])
def test_what_an_engine_does_not_tell_is_absent(tmp_path: Path, name: str) -> None:
    with (
        fleet(tmp_path) as where,
        engine_node(name, tmp_path / "e", registry=where.registry.url, name="r1") as node,
    ):
        node.start()
        node.ready()
        where.until_routed(node.model)
        assert not set(FIGURES) & set(node.report())
        outcome = {"replica": "r1-server", "outcome": "absent"}
        assert samples(f"{where.url}/metrics/engines") == [("svc_router_engine_metrics_outcome", outcome, 1.0)]
        assert set(top(where, node).values()) == {None}
