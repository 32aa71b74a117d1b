"""`GET /metrics/engines`: many engines' pages as one, and engines whose metrics are rubbish."""

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from common.exposition import UnreadablePage, parse
from common.http.client import make_session
from common.http.tls import client_context
from common.wire.record import ServiceRecord
from router.control import engine_metrics
from router.control.engine_metrics import OUTCOMES, EngineMetrics, url_of
from router.control.engine_page import EnginePage
from router.model import Replica
from tests.common.test_exposition import official_page

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PAGE = """\
# HELP vllm:running Requests.
# TYPE vllm:running gauge
vllm:running{model_name="m"} 2.0
# HELP vllm:seconds Time.
# TYPE vllm:seconds histogram
vllm:seconds_bucket{le="0.1"} 1
vllm:seconds_bucket{le="+Inf"} 2
vllm:seconds_count 2
vllm:seconds_sum 0.5
"""


def replica(url: str, name: str = "a", **metadata: Any) -> Replica:
    host, _, port = url.removeprefix("http://").partition(":")
    record = ServiceRecord(name=name, host=host, port=int(port), url=url, status="running", metadata=metadata)
    return Replica(record, generation="1", leased=True)


def merged(**pages: str) -> str:
    page = EnginePage()
    for name, text in pages.items():
        page.add(parse(text), name)
    return page.render()


def series(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a page by name and labels, as Prometheus' own client reads them; none may come twice."""
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def test_each_family_is_said_once_and_each_sample_says_whose_it_is() -> None:
    page = merged(a=PAGE, b=PAGE)
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        line for line in PAGE.splitlines() if line.startswith("#")
    ]
    found = series(page)
    assert len(found) == 10
    assert found["vllm:running", frozenset({("replica", "a"), ("model_name", "m")})] == 2.0
    assert found["vllm:seconds_bucket", frozenset({("replica", "b"), ("le", "+Inf")})] == 2.0
    [histogram] = [one for one in text_string_to_metric_families(page) if one.type == "histogram"]
    assert len(histogram.samples) == 8


def test_label_that_is_called_replica_already_is_kept_under_another_name() -> None:
    page = merged(
        a='x{replica="0"} 1\ny{replica="0",exported_replica="1",exported_exported_replica="2"} 1', b='x{replica="0"} 1'
    )
    assert set(series(page)) == {
        ("x", frozenset({("replica", "a"), ("exported_replica", "0")})),
        ("x", frozenset({("replica", "b"), ("exported_replica", "0")})),
        (
            "y",
            frozenset(
                {
                    ("replica", "a"),
                    ("exported_exported_exported_replica", "0"),
                    ("exported_replica", "1"),
                    ("exported_exported_replica", "2"),
                }
            ),
        ),
    }


def test_family_that_two_engines_call_different_types_is_of_none() -> None:
    page = merged(a='# TYPE x histogram\nx_bucket{le="+Inf"} 1\nx_count 1\nx_sum 1', b="# TYPE x gauge\nx 3", c="x 4")
    assert "# TYPE x untyped" in page
    assert page.count("# TYPE") == 1
    assert len(series(page)) == 5


def test_name_of_a_replica_cannot_end_its_label() -> None:
    assert set(series(merged(**{'a"} 1\n\\': "x 1"}))) == {("x", frozenset({("replica", 'a"} 1\n\\')}))}


LINES = st.lists(
    st.sampled_from([*PAGE.splitlines(), *official_page().splitlines(), "x 1", "# TYPE x gauge", 'x{replica="a"} 1']),
    max_size=30,
)


@given(LINES, LINES)
@settings(max_examples=200, deadline=None)
def test_every_page_that_is_taken_is_in_the_page_of_all_and_that_one_is_valid(one: list[str], other: list[str]) -> None:
    page, samples = EnginePage(), 0
    for name, lines in (("a", one), ("b", other)):
        try:
            families = parse("\n".join(lines))
        except UnreadablePage:
            continue
        page.add(families, name)
        samples += sum(len(family.samples) for family in families.values())
    assert len(series(page.render())) == samples
    again = parse(page.render())
    assert sum(len(family.samples) for family in again.values()) == samples


def says(text: str, **more: Any) -> Handler:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, **more)

    return answer


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b'x{y="' + b"z" * 65536 + b'"} 1\n')
    return response


async def compressed(_request: web.Request) -> web.StreamResponse:
    headers = {"Content-Encoding": "gzip", "Content-Type": "text/plain"}
    return web.Response(body=gzip.compress(PAGE.encode()), headers=headers)


async def silent(_request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3600)
    raise AssertionError


async def elsewhere(_request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/secret")


RUBBISH: dict[str, tuple[Handler, str]] = {
    "binary": (says("\x00\x01\x02"), "unreadable"),
    "compressed": (compressed, "unreadable"),
    "html": (says("<html></html>"), "unreadable"),
    "of_another_type": (says(PAGE, content_type="application/json"), "unreadable"),
    "twice": (says(PAGE + PAGE), "unreadable"),
    "endless": (endless, "unreadable"),
    "huge": (says("x 1e999"), "unreadable"),
    "failing": (says("", status=500), "refused"),
    "locked": (says("", status=401), "refused"),
    "redirecting": (elsewhere, "refused"),
    "without": (says("", status=404), "absent"),
    "silent": (silent, "late"),
}


@asynccontextmanager
async def engines(**handlers: Handler) -> AsyncIterator[tuple[EngineMetrics, list[Replica]]]:
    """Engines that answer like these, by name, and what asks them."""
    servers, several = [], []
    try:
        for name, handler in handlers.items():
            app = web.Application()
            app.router.add_get("/metrics", handler)
            app.router.add_get("/secret", says("secret 1"))
            servers.append(TestServer(app))
            await servers[-1].start_server(shutdown_timeout=0.0)
            several.append(replica(str(servers[-1].make_url("")).rstrip("/"), name))
        async with make_session(timeout_s=5) as session:
            tls = client_context(None)
            yield EngineMetrics(session, lambda: several, lambda: tls), several
    finally:
        for server in servers:
            await server.close()


def outcomes(page: bytes) -> dict[str, str]:
    found = [dict(labels) for (name, labels), _ in series(page.decode()).items() if name == OUTCOMES]
    return {labels["replica"]: labels["outcome"] for labels in found}


async def test_rubbish_is_passed_over_counted_and_named_once_and_the_others_are_told_A21(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_metrics, "FRESH_S", 0.0)
    handlers = {name: handler for name, (handler, _) in RUBBISH.items()}
    async with engines(good=says(PAGE), **handlers, also=says(official_page())) as (asking, several):
        several.append(replica("http://127.0.0.1:1", "gone"))
        with structlog.testing.capture_logs() as lines:
            page = await asking.page()
            await asking.page()
    wanted = {name: outcome for name, (_, outcome) in RUBBISH.items()}
    assert outcomes(page) == {**wanted, "good": "told", "also": "told", "gone": "unreachable"}
    told = {dict(labels)["replica"] for name, labels in series(page.decode()) if name != OUTCOMES}
    assert told == {"good", "also"}
    logged = [(line["replica"], line["outcome"]) for line in lines if line["event"] == "engine_metrics.passed_over"]
    assert sorted(logged) == sorted(
        (name, outcome) for name, outcome in wanted.items() if outcome in ("unreadable", "refused", "late")
    )
    assert all(line["reason"] for line in lines)


async def test_engines_beyond_what_a_scrape_may_have_are_left_out_and_counted_A21(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_metrics, "ALL_LIMIT_BYTES", 2 * len(PAGE))
    async with engines(a=says(PAGE), b=says(PAGE), c=says(PAGE), d=says(PAGE)) as (asking, _):
        found = outcomes(await asking.page())
    assert sorted(found.values()) == ["left_out", "left_out", "told", "told"]


async def test_scrapers_at_the_same_time_cost_the_engines_one_request() -> None:
    asked = 0

    async def answer(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(text=PAGE)

    async with engines(a=answer) as (asking, _):
        pages = await asyncio.gather(*(asking.page() for _ in range(20)))
    assert (asked, len(set(pages))) == (1, 1)


async def test_engine_that_gave_nothing_is_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_metrics, "FRESH_S", 0.0)
    order = []

    def named(name: str, text: str) -> Handler:
        async def answer(_request: web.Request) -> web.Response:
            order.append(name)
            return web.Response(text=text)

        return answer

    async with engines(bad=named("bad", "<"), good=named("good", PAGE), fine=named("fine", PAGE)) as (asking, _):
        asking._slots = asyncio.Semaphore(1)
        await asking.page()
        await asking.page()
    assert order == ["bad", "good", "fine", "good", "fine", "bad"]


async def test_replica_is_shown_its_own_key_and_none_that_is_down_is_asked() -> None:
    shown = []

    async def answer(request: web.Request) -> web.Response:
        shown.append((request.headers.get("Authorization"), request.headers["Accept-Encoding"]))
        return web.Response(text=PAGE)

    async with engines(a=answer, b=answer) as (asking, several):
        several[0].authorization = "Bearer its-own"
        several[1].probed_ok = False
        assert outcomes(await asking.page()) == {"a": "told"}
    assert shown == [("Bearer its-own", "identity")]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (None, "http://h:1/team/metrics"),
        ("/server/prometheus", "http://h:1/server/prometheus"),
        ("metrics", "http://h:1/team/metrics"),
        ("/../admin", "http://h:1/team/metrics"),
        ("/a?b=c", "http://h:1/team/metrics"),
        ("/%2e%2e/a", "http://h:1/team/metrics"),
        ("//other/metrics", "http://h:1/team/metrics"),
        ("/" + "a" * 300, "http://h:1/team/metrics"),
    ],
)
def test_path_of_a_record_leads_nowhere_but_to_its_own_server(path: str | None, asked: str) -> None:
    record = ServiceRecord(name="a", host="h", port=1, url="http://h:1/team", metadata={"metrics_path": path})
    assert url_of(Replica(record, generation="1", leased=True)) == asked
