"""The live table: rates from the router's counters, rows from both services, orders, JSON."""

import json
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from common.wire.deployment import DeploymentInfo, DeploymentPhase
from common.wire.replica import ReplicaInfo
from common.wire.router import RoutedService
from ctl import answers
from ctl.codes import Code
from ctl.views import top
from ctl.views.rates import CounterSample, Rates, quantile, rates, read_metrics, total
from ctl.views.top import Row
from tests.ctl.conftest import Suite

LABELS = ["model", "replica"]


def page(
    name: str, *, ok: int, failed: int = 0, tokens: int = 0, first: tuple[int, int] = (0, 0), flight: int = 0
) -> str:
    """The router's metrics of one replica; `first` counts answers below 0.1 s and 1 s."""

    class Source(Collector):
        def collect(self) -> list[Metric]:
            requests = CounterMetricFamily("svc_router_requests", "…", labels=[*LABELS, "outcome"])
            requests.add_metric(["m", name, "ok"], ok)
            requests.add_metric(["m", name, "client_gone"], 100)
            requests.add_metric(["m", name, "died"], failed)
            in_flight = GaugeMetricFamily("svc_router_in_flight", "…", labels=LABELS)
            in_flight.add_metric(["m", name], flight)
            tokens_of = CounterMetricFamily("svc_router_tokens", "…", labels=[*LABELS, "kind"])
            for kind, count in (("prompt", 10_000), ("completion", tokens), ("estimated", 7)):
                tokens_of.add_metric(["m", name, kind], count)
            firsts = HistogramMetricFamily("svc_router_time_to_first_byte_seconds", "…", labels=LABELS)
            firsts.add_metric(["m", name], [("0.1", first[0]), ("1.0", sum(first)), ("+Inf", sum(first))], 1.0)
            return [requests, in_flight, tokens_of, firsts]

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Source())
    return generate_latest(registry).decode()


def test_rates_are_differences_over_the_time_between_two_looks() -> None:
    before = read_metrics(page("a", ok=10, tokens=100), 100.0)
    after = read_metrics(page("a", ok=30, failed=4, tokens=600, first=(10, 10), flight=3), 110.0)
    found = rates(before, after)["a"]
    assert found.ttft_p95_s == pytest.approx(0.91)
    assert found == Rates(2.4, 0.4, 50.0, 3, ttft_p50_s=0.1, ttft_p95_s=found.ttft_p95_s)
    assert total(before, after) == found


def test_a_router_that_was_restarted_counts_from_nought() -> None:
    before = read_metrics(page("a", ok=1000), 0.0)
    after = read_metrics(page("a", ok=5), 10.0)
    assert rates(before, after)["a"].requests == pytest.approx(10.5)


def test_a_page_that_is_no_metrics_is_a_value_error_or_nothing() -> None:
    assert read_metrics("<html>", 0.0) == CounterSample(0.0, {})


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ([], 0.5, None),
        ([(1.0, 0.0), (float("inf"), 0.0)], 0.5, None),
        ([(1.0, 10.0), (2.0, 10.0), (float("inf"), 10.0)], 0.5, 0.5),
        ([(1.0, 5.0), (2.0, 10.0), (float("inf"), 10.0)], 0.95, 1.9),
        ([(1.0, 0.0), (float("inf"), 10.0)], 0.5, 1.0),
    ],
)
def test_quantiles_are_reckoned_as_prometheus_does(
    buckets: list[tuple[float, float]], share: float, expected: float | None
) -> None:
    assert quantile(buckets, share) == (None if expected is None else pytest.approx(expected))


INFOS: list[dict[str, Any]] = [
    {"replica_id": "a", "model_name": "m", "status": "ready", "restart_count": 2, "metadata": {"node": "n1"}},
    {"replica_id": "b", "model_name": "m", "status": "creating"},
    {"replica_id": "c", "model_name": "m", "status": "ready"},
]
SERVICES: list[dict[str, Any]] = [
    {"name": "a-server", "healthy": True, "standing": "fresh", "metadata": {"parent_service": "a"}},
    {"name": "c-server", "healthy": False, "standing": "draining"},
    {"name": "static", "healthy": False, "standing": "down", "host": "h", "models": ["x"]},
]


def test_rows_join_replicas_with_their_servers_and_keep_those_of_nobody() -> None:
    found = {
        row.name: row
        for row in top.rows(
            answers.items(ReplicaInfo, {"replicas": INFOS}, "replicas"),
            answers.items(RoutedService, {"services": SERVICES}, "services"),
            {"a-server": Rates(tokens=5.0), "static": Rates(errors=1.0)},
        )
    }
    assert {name: row.state for name, row in found.items()} == {
        "a": "ready", "b": "creating", "c": "draining", "static": "down",
    }  # fmt: skip
    assert found["a"].rates.tokens == 5.0
    assert (found["a"].node, found["a"].restarts) == ("n1", 2)
    assert (found["static"].model, found["static"].rates.errors) == ("x", 1.0)


TELLS = {"running": 3, "waiting": 0, "kv_cache_usage": 0.256, "prefix_query_tokens": 1000, "prefix_hit_tokens": 862}


def test_what_engines_tell_has_columns_and_what_one_does_not_tell_is_empty() -> None:
    infos = [
        *INFOS,
        {"replica_id": "d", "status": "ready", **TELLS},
        {"replica_id": "e", "status": "ready", "running": 0},
    ]
    rows = top.rows(answers.items(ReplicaInfo, {"replicas": infos}, "replicas"), (), {})
    shown = top.table(rows)
    assert (top.table(rows, 110), top.table(rows, 109).columns) == (shown, shown.columns[:-4])
    assert shown.columns[-4:] == ("RUN", "WAIT", "KV", "CACHED")
    cells = {row[0]: row[-4:] for row in shown.rows}
    assert cells["a"] == ("", "", "", "")
    assert cells["d"] == ("3", "0", "26%", "86%")
    assert cells["e"] == ("0", "", "", "")
    looked = json.loads(json.dumps(top.document(rows, Rates(), (), (), ())))
    [engine] = [row["engine"] for row in looked["replicas"] if row["name"] == "e"]
    assert engine == {"running": 0, "waiting": None, "kv_cache_usage": None, "prefix_hit_share": None}
    assert "RUN" not in top.table([row for row in rows if row.name == "a"]).columns


def test_each_order_puts_first_what_it_is_for() -> None:
    rows = [
        Row("a", "m", "ready", "", 0, Rates(errors=1.0)),
        Row("b", "m", "ready", "", 0, Rates(in_flight=4)),
        Row("c", "m", "failed", "", 0),
        Row("d", "m", "ready", "", 0, Rates(ttft_p95_s=3.0)),
    ]
    first = {by: top.ordered(rows, by)[0].name for by in top.SORTS}
    assert first == {"busy": "b", "name": "a", "state": "c", "ttft": "d", "errors": "a"}


def test_a_group_is_one_replica_and_its_followers_stand_below_it() -> None:
    rows = [
        Row("follower", "m", "failed", "n2", 0, group="g", rank=1),
        Row("a", "m", "ready", "", 0),
        Row("leader", "m", "ready", "n1", 0, Rates(in_flight=4), group="g"),
        Row("b", "m", "starting", "", 0),
    ]
    assert [row.name for row in top.ordered(rows, "busy")] == ["leader", "follower", "a", "b"]
    assert [row.name for row in top.ordered(rows, "name")] == ["a", "b", "leader", "follower"]
    assert [row.name for row in top.ordered(rows, "state")] == ["leader", "follower", "b", "a"]
    shown = top.folded(top.ordered(rows, "name"))
    assert [(row.name, row.model, row.state) for row in shown[2:]] == [
        ("leader", "m", "failed"), ("follower", "└ rank 1", "failed"),
    ]  # fmt: skip
    assert top.headline(shown, Rates()).startswith("1/3 ready")
    assert [row["name"] for row in top.document(rows, Rates(), (), (), ())["replicas"]] == [row.name for row in rows]  # type: ignore[attr-defined]


def deployment(name: str, phase: DeploymentPhase, waiting: int, **more: Any) -> DeploymentInfo:
    return DeploymentInfo(
        name=name,
        model=name,
        version=1,
        revision=1,
        phase=phase,
        spec={},
        **{"created_at": "", "updated_at": "", "waiting": waiting, **more},
    )


def test_what_starts_or_is_waited_for_has_a_line_with_the_time_that_is_left() -> None:
    infos = [
        deployment("a", DeploymentPhase.STARTING, 37, stage="loading", percent=41, eta_s=12.0),
        deployment("b", DeploymentPhase.READY, 40),
        deployment("c", DeploymentPhase.COLD, 0),
        deployment("d", DeploymentPhase.QUEUED, 0, position=2),
    ]
    lines = top.awaited(infos)
    assert lines == [
        "b: ready, 40 waiting",
        "a: starting (loading) 41% eta 12s, 37 waiting",
        "d: queued (place 2), 0 waiting",
    ]
    assert top.awaited(infos[:1] * 9)[5:] == ["and 4 more"]
    assert top.document([], Rates(), (), infos, ())["deployments"][0] == {  # type: ignore[index]
        "name": "a",
        "phase": "starting",
        "waiting": 37,
        "eta": "41% eta 12s",
    }


async def test_once_in_a_pipe_is_a_headline_and_a_table(suite: Suite) -> None:
    serve(suite, [page("a-server", ok=0), page("a-server", ok=10, tokens=100, first=(10, 0), flight=1)])
    done = await suite.ctl("top", "--once", "--interval", "0.05")
    assert done.code == 0, done.stderr
    headline, columns, row, *_ = done.stdout.splitlines()
    assert headline.startswith("1/4 ready   1 in flight")
    assert columns.split()[:3] == ["REPLICA", "MODEL", "STATE"]
    assert row.split()[:5] == ["a", "m", "ready", "n1", "1"]


async def test_json_is_one_document_per_look(suite: Suite) -> None:
    serve(suite, [page("a-server", ok=number) for number in (0, 1, 2)])
    done = await suite.ctl("top", "-n", "2", "--interval", "0.05", "--json")
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(looks) == 2
    assert looks[1]["fleet"]["requests"] > 0
    assert [row["name"] for row in looks[0]["replicas"]] == ["a", "b", "c", "static"]


async def test_a_service_that_does_not_answer_is_named_and_the_other_is_shown(suite: Suite) -> None:
    serve(suite, [])
    suite.router = "http://127.0.0.1:1"
    done = await suite.ctl("top", "--once", "--interval", "0.05")
    assert done.code == 0
    assert "the router does not answer" in done.stderr
    assert "creating" in done.stdout


async def test_nobody_there_is_one_line(suite: Suite) -> None:
    suite.registry = suite.router = "http://127.0.0.1:1"
    done = await suite.ctl("top")
    assert done.code == Code.UNREACHABLE
    assert len(done.stderr.splitlines()) == 1


def serve(suite: Suite, pages: list[str]) -> None:
    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(text=pages.pop(0) if len(pages) > 1 else pages[0])

    suite.answers["registry GET /api/v1/replicas"] = {"replicas": INFOS}
    suite.answers["router GET /services"] = {"services": SERVICES}
    suite.answers["router GET /metrics"] = metrics


async def test_who_asks_is_a_table_of_its_own(suite: Suite) -> None:
    suite.answers["registry GET /api/v1/replicas"] = {"total": 0, "replicas": []}
    suite.answers["router GET /services"] = {"services": []}
    suite.answers["router GET /metrics"] = web.Response(text="")
    used = {"key": "team", "requests_s": 2.0, "prompt_tokens_s": 1234.5, "completion_tokens_s": 20.0}
    suite.answers["router GET /traffic"] = {"keys": [used, {**used, "key": ""}]}
    done = await suite.ctl("top", "--once", "-i", "0.01", "--by-key")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["team", "2.0", "1,234", "20.0"] in lines
    assert ["anonymous", "2.0", "1,234", "20.0"] in lines
    assert (await suite.ctl("top", "--once", "-i", "0.01", "--json")).json["keys"][0] == used
