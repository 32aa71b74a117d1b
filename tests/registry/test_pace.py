"""Ten thousand records: no call holds the loop for long, and what changes while a long answer is made is not lost."""

import asyncio
import gc
import gzip
import itertools
import time
import urllib.request
from collections.abc import Iterator

import msgspec
import pytest

from common import paced as pacing
from common.wire.record import Registration
from registry.core.catalogue import Catalogue
from registry.core.model import Deregister, Register, Renew
from registry.core.report import make_report
from registry.http import context
from registry.views.render import Renderer
from registry.views.watch import WatchHub
from tests.registry.conftest import Client, FakeClock, StartClient, parts

RECORDS = 10_000
HELD_S = 0.020
"""CPU time of the loop's thread, so that other programs of the machine do not count."""
LONG_CALLS = (
    "/services",
    "/services?healthy=true",
    "/v1/replicas",
    "/stats",
    "/metrics",
    "/sd/prometheus",
    "/v1/watch",
)


def said(number: int, **changes: object) -> Registration:
    place = {"host": "10.0.0.1", "port": 9000, "hostname": "node", "url": "http://10.0.0.1:9000", "status": "running"}
    metadata = {"type": "openai-api", "models": ["m"], "models_list": [{"id": "m"}]}
    registration = {"name": f"svc-{number:05}", "instance_id": "i", "metadata": metadata, **place, **changes}
    return msgspec.convert(registration, Registration)


async def fill(client: Client) -> None:
    writer = parts(client).writer
    for number in range(RECORDS):
        await writer.submit(Register(said(number)))
        report = make_report({"replica_id": f"r{number:05}", "status": "ready", "models": ["m"], "port": 9000})
        await writer.submit(Renew(f"svc-{number:05}", "ready", instance_id="i", report=report))


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What the collector takes is no call's."""
    gc.disable()
    yield
    gc.enable()


async def longest_hold(stop: asyncio.Event) -> float:
    """Most CPU seconds that passed between two turns of this task."""
    longest = 0.0
    while not stop.is_set():
        before = time.thread_time()
        await asyncio.sleep(0)
        longest = max(longest, time.thread_time() - before)
    return longest


def read_one(url: str) -> int:
    """Bytes of the answer, or of its first line where it never ends."""
    with urllib.request.urlopen(url) as answer:  # noqa: S310 - our own
        return len(answer.readline() if url.endswith("watch") else answer.read())


@pytest.mark.usefixtures("no_collection")
async def test_no_call_holds_the_loop_for_more_than_20_ms(start_registry: StartClient) -> None:
    client = await start_registry()
    await fill(client)
    held = {}
    for path in LONG_CALLS:
        stop = asyncio.Event()
        watched = asyncio.create_task(longest_hold(stop))
        size = await asyncio.to_thread(read_one, str(client.make_url(path)))
        stop.set()
        held[path] = await watched
        assert size > RECORDS * 100 or path in {"/stats", "/metrics", "/sd/prometheus"}
    assert {path: round(taken, 3) for path, taken in held.items() if taken > HELD_S} == {}


async def test_long_answers_are_compressed_for_those_who_ask(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "COMPRESSED_FROM_BYTES", 100)
    await parts(client).writer.submit(Register(said(1)))

    def read(**headers: str) -> tuple[str | None, bytes]:
        asked = urllib.request.Request(str(client.make_url("/services")), headers=headers)  # noqa: S310 - our own
        with urllib.request.urlopen(asked) as answer:  # noqa: S310
            return answer.headers["Content-Encoding"], answer.read()

    assert (await asyncio.to_thread(read))[0] is None
    encoding, body = await asyncio.to_thread(lambda: read(**{"Accept-Encoding": "gzip"}))
    assert encoding == "gzip"
    assert [it["name"] for it in msgspec.json.decode(gzip.decompress(body))["services"]] == ["svc-00001"]


@pytest.fixture
def slow_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have a turn after every row."""
    monkeypatch.setattr(pacing, "PIECE_S", 0.0)


def shown_in(pieces: list[bytes]) -> list[str]:
    return [service["name"] for service in msgspec.json.decode(b"".join(pieces))]


@pytest.mark.usefixtures("slow_rows")
async def test_a_table_is_no_older_than_the_call_for_it() -> None:
    catalogue = Catalogue(epoch="e")
    renderer = Renderer(catalogue, FakeClock())
    for number in range(10):
        catalogue.apply(Register(said(number)), 0.0)
    early = asyncio.create_task(renderer.table())
    await asyncio.sleep(0)  # it has begun
    catalogue.apply(Register(said(99)), 0.0)
    late, later = await asyncio.gather(renderer.table(), renderer.table())
    assert "svc-00099" not in shown_in((await early).services)
    assert "svc-00099" in shown_in(late.services)
    assert later is late, "those who ask meanwhile share one"


@pytest.mark.usefixtures("slow_rows")
async def test_what_changes_while_a_snapshot_is_made_comes_after_it() -> None:
    catalogue = Catalogue(epoch="e")
    hub = WatchHub(catalogue, Renderer(catalogue, FakeClock()), limit=10)
    for number in range(10):
        catalogue.apply(Register(said(number)), 0.0)
    watcher = hub.subscribe(since=None, epoch=None)
    taking = asyncio.create_task(hub.take(watcher))
    for change in (Register(said(99)), Deregister("svc-00003"), Deregister("svc-00009")):
        await asyncio.sleep(0)
        hub.publish(catalogue.apply(change, 0.0)[1])
    known = set[str]()
    for line in itertools.chain(b"".join(await taking).splitlines(), b"".join(await hub.take(watcher)).splitlines()):
        update = msgspec.json.decode(line)
        match update["type"]:
            case "snapshot":
                known = {service["name"] for service in update["services"]}
            case "put":
                known.add(update["service"]["name"])
            case "delete":
                known.discard(update["name"])
    assert known == {entry.instance.name for entry in catalogue}
