"""Faults around a whole registry: restarts, pauses, full disks, crowds, clocks. Ids are those of the fault list."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from common.discovery import pause
from common.discovery.lease import Lease
from common.discovery.registry_client import RegistryClient, RegistryUnavailable
from common.http.client import make_session
from common.wire.record import Registration
from registry.core.model import Instance, Sweep, Upsert
from registry.store.sqlite import SqliteStore
from tests.ports import free_port
from tests.registry.conftest import Beating, Client, FakeClock, StartClient, body, our_registration, ours, parts, until
from tests.registry.processes import running

MEMORY = ("--store", "memory://", "--health-interval", "3600")


async def get_json(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as answer:
        return await answer.json()


@pytest.mark.e2e
async def test_restart_without_memory_is_healed_by_the_next_heartbeat_C1(tmp_path: Path) -> None:
    port = str(free_port())
    async with make_session(timeout_s=5) as session:
        with running(tmp_path, *MEMORY, "--port", port) as (process, url):
            client = RegistryClient([url], session)
            lease = Lease(
                client,
                registration=our_registration,
                report=lambda: Beating(instance_id="i-1", incarnation=1),
                interval_s=0.2,
            )
            keeping = asyncio.ensure_future(lease.keep())
            await until(lambda: lease.registered_as is not None)
            before = await get_json(session, f"{url}/health")
            process.kill()
            process.wait()
        with running(tmp_path, *MEMORY, "--port", port) as (_, url):
            started = time.monotonic()
            while not (found := await get_json(session, f"{url}/services"))["services"]:
                await asyncio.sleep(0.02)
                assert time.monotonic() - started < 5
            after = await get_json(session, f"{url}/health")
            assert found["services"][0]["instance_id"] == "i-1"
            assert after["epoch"] != before["epoch"]
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping


@pytest.mark.e2e
async def test_long_absence_is_waited_for_with_patience_and_ends_without_a_stampede_C3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pause, "START_S", 0.0)  # for those that did not just start
    port = free_port()
    attempts: list[float] = []

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(time.monotonic())
        writer.close()

    async with make_session(timeout_s=5) as session:
        client = RegistryClient([f"http://127.0.0.1:{port}"], session)
        names = [f"r{number}" for number in range(20)]
        leases = [Lease(client, lambda name=name: our_registration(name), Beating, interval_s=0.2) for name in names]  # type: ignore[misc]
        keeping = [asyncio.ensure_future(lease.keep()) for lease in leases]
        async with await asyncio.start_server(hang_up, "127.0.0.1", port):
            await asyncio.sleep(3.0)
        # Tries come at 0, 0.5, 1 … s, spread by jitter: at most five of each in three seconds, never all at once.
        assert len(attempts) <= 5 * len(names)
        late = [at for at in attempts if at > attempts[0] + 0.4]
        assert max(sum(at <= other < at + 0.05 for other in late) for at in late) < len(names)
        with running(tmp_path, *MEMORY, "--port", str(port)) as (_, url):
            async with asyncio.timeout(12):
                while len((await get_json(session, f"{url}/services"))["services"]) < len(names):
                    await asyncio.sleep(0.05)
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)


@pytest.mark.e2e
async def test_paused_registry_costs_its_clients_a_bounded_time_C10(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.discovery.registry_client.CALL_TIMEOUT_S", 0.3)
    async with make_session(timeout_s=5) as session:
        with running(tmp_path, *MEMORY) as (process, url):
            client = RegistryClient([url], session)
            await client.register(our_registration())
            process.send_signal(signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(RegistryUnavailable):
                await client.renew("svc", Beating())
            assert time.monotonic() - started < 2
            process.send_signal(signal.SIGCONT)
            await client.renew("svc", Beating(instance_id="i-1", incarnation=1))  # nothing was forgotten


async def test_response_lost_after_commit_and_repeated_is_one_record_C8(client: Client) -> None:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    raw = aiohttp.JsonPayload(ours())
    head = f"POST /services HTTP/1.1\r\nHost: x\r\nContent-Length: {raw.size}\r\n\r\n".encode()
    writer.write(head + raw.decode().encode())
    await writer.drain()
    await until(lambda: len(parts(client).catalogue) == 1)
    writer.transport.abort()
    del reader
    async with client.post("/services", json=ours()) as answer:
        assert answer.status == 200
        assert (await answer.json())["service"]["generation"] == 1
    assert parts(client).catalogue.revision == 1


async def test_wall_clock_jump_expires_nothing_C11(client: Client, clock: FakeClock, monkeypatch: Any) -> None:
    await client.post("/services", json=ours())
    real = clock.utcnow()
    for hours in (1, -1):
        monkeypatch.setattr(clock, "utcnow", lambda hours=hours: real + timedelta(hours=hours))
        await parts(client).writer.submit(Sweep())
        async with client.get("/services/svc") as answer:
            assert (await answer.json())["is_healthy"]


async def test_suspended_babysitter_is_stale_then_itself_again_B13(client: Client, clock: FakeClock) -> None:
    await client.post("/services", json=ours(incarnation=4))

    async def pause(seconds: float) -> None:
        clock.advance(seconds)
        await parts(client).writer.submit(Sweep())

    async def beat() -> int:
        async with client.post("/services/svc/heartbeat", json={"instance_id": "i-1", "incarnation": 4}) as answer:
            return answer.status

    await pause(16)
    async with client.get("/services/svc") as answer:
        shown = await answer.json()
    assert (shown["stale"], shown["is_healthy"]) == (True, False)
    assert await beat() == 200
    await pause(60)
    assert await beat() == 404  # removed meanwhile: register again
    async with client.post("/services", json=ours(incarnation=4)) as answer:
        assert answer.status == 201
    assert await beat() == 200


async def test_watchers_that_never_read_do_not_hold_up_writers_C9(client: Client) -> None:
    stuck = []
    for _ in range(100):
        _, writer = await asyncio.open_connection(client.host, client.port, limit=1024)
        writer.write(b"GET /v1/watch HTTP/1.1\r\nHost: x\r\n\r\n")
        stuck.append(writer)
    await until(lambda: len(parts(client).hub) == 100)
    started = time.monotonic()
    for number in range(100):
        padding = {"padding": "x" * 8000, "number": number}
        async with client.post("/services", json=body(metadata=padding)) as answer:
            assert answer.status == 201
    assert time.monotonic() - started < 10
    assert len(parts(client).hub) == 100
    for watcher in parts(client).hub._watchers:
        assert sum(map(len, watcher.pending.values())) < 20_000
    for writer in stuck:
        writer.transport.abort()


async def test_idle_connections_leave_the_others_alone_C14(client: Client) -> None:
    idle = [(await asyncio.open_connection(client.host, client.port))[1] for _ in range(500)]
    for _ in range(20):
        async with asyncio.timeout(1), client.get("/health") as answer:
            assert answer.status == 200
    for writer in idle:
        writer.transport.abort()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of half a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs privileges")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def test_full_disk_refuses_registrations_and_keeps_the_rest_C13(
    start_registry: StartClient, small_disk: Path
) -> None:
    client = await start_registry(SqliteStore(small_disk / "r.sqlite3"))
    statuses: list[int] = []
    while len(statuses) < 400 and 507 not in statuses:
        record = ours(f"svc-{len(statuses)}", metadata={"padding": "x" * 7000})
        async with client.post("/services", json=record) as answer:
            statuses.append(answer.status)
    assert statuses[-1] == 507
    assert set(statuses[:-1]) == {201}
    count = len(statuses) - 1
    async with client.get("/services") as answer:
        assert (await answer.json())["total"] == count
    beat = {"instance_id": "i-1", "incarnation": 1, "status": "stopping"}
    async with client.post("/services/svc-0/heartbeat", json=beat) as answer:
        assert answer.status == 200
    async with client.get("/services/svc-0") as answer:
        assert (await answer.json())["status"] == "stopping"
    assert parts(client).writer.unwritten == {"svc-0"}
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    await parts(client).writer.rewrite()
    assert parts(client).writer.unwritten == set()
    async with client.post("/services", json=ours("more")) as answer:
        assert answer.status == 201


@pytest.mark.parametrize("damage", ["torn", "flipped"])
async def test_damaged_tail_of_the_journal_costs_the_tail_only_C12(tmp_path: Path, damage: str) -> None:
    live = tmp_path / "live"
    store = SqliteStore(live / "r.sqlite3")
    await store.open()
    for number in range(20):
        said = Registration(
            name=f"n{number:02}",
            host="h",
            port=1,
            hostname="h",
            url="http://h:1",
            status="running",
            metadata={"padding": "x" * 3000},
        )
        await store.write([Upsert(Instance(said, generation=1), durable=True)])
    killed = tmp_path / "killed"
    shutil.copytree(live, killed)  # what a kill -9 leaves: the journal is not yet in the file
    await store.close()
    journal = killed / "r.sqlite3-wal"
    size = journal.stat().st_size
    if damage == "torn":
        os.truncate(journal, size - 7)
    else:
        with journal.open("r+b") as file:
            file.seek(size - 2000)
            byte = file.read(1)
            file.seek(size - 2000)
            file.write(bytes([byte[0] ^ 0xFF]))
    started = time.monotonic()
    again = SqliteStore(killed / "r.sqlite3")
    loaded = await again.open()
    assert time.monotonic() - started < 5
    assert [found.name for found in loaded.instances] == [f"n{number:02}" for number in range(19)]
    await again.close()
