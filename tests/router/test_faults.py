"""Faults of whole replicas and of the router's own means, caused for real (docs/faults.md A1, A4, A19, D7, D19, D20, D30)."""

import asyncio
import hashlib
import json
import os
import resource
import signal
import socket
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from packaging.version import Version

from router.keys import Key
from router.model import Eligibility, Table
from tests.ports import free_port
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, FakeReplica, Plane, event, plain, read_reply, request
from tests.router.test_process import Node, answer_ok, node, process, replica
from tests.router.test_proxy import close_at_once

__all__ = ["node", "replica"]  # fixtures of the other file
CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[]}'


def static_file(folder: Path, *ports: int) -> str:
    path = folder / "static.json"
    services = [
        {"name": f"s{port}", "host": "127.0.0.1", "port": port, "metadata": {"models": ["m"]}} for port in ports
    ]
    path.write_text(json.dumps(services))
    return str(path)


def mock(folder: Path, port: int, *flags: str) -> Any:
    return process("babysitter.mock", "--port", str(port), "--model", "m", *flags, cwd=folder)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def take_descriptors(taken: list[int]) -> None:
    """Take every one that is left; ends with the error that says so."""
    while True:
        taken.append(os.dup(0))


@pytest.mark.e2e
async def test_a_killed_replica_costs_only_the_answers_it_had_begun_A1(node: Node) -> None:
    ports = free_port(), free_port()
    slow = ("--token-delay-s", "0.05", "--tokens", "60")
    async with mock(node.folder, ports[0], *slow) as first, mock(node.folder, ports[1], *slow):
        static = static_file(node.folder, *ports)
        for port in ports:  # the router's first probe meets both: the next one comes in 30 s
            await node.until_listening(port)
        async with node.router("--static-services", static, "--health-interval", "30"):
            await node.until(node.chats)
            begun = asyncio.Semaphore(0)

            async def stream() -> bytes:
                body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
                got = b""
                async with node.http.post(f"{node.url}/v1/chat/completions", json=body) as answer:
                    assert answer.status == 200
                    try:
                        async for chunk in answer.content.iter_any():
                            got += chunk
                            begun.release()
                    except aiohttp.ClientPayloadError:
                        got += b"<unclean>"
                return got

            streams = [asyncio.ensure_future(stream()) for _ in range(20)]
            for _ in range(60):
                await asyncio.wait_for(begun.acquire(), 20)
            first.kill()
            later = [node.chat() for _ in range(20)]
            assert await asyncio.gather(*later) == [200] * 20
            ended = await asyncio.gather(*streams)
        whole = [text for text in ended if b"[DONE]" in text]
        broken = [text for text in ended if b"[DONE]" not in text]
        # Two workers that decide in the same instant may give a replica one more than half.
        assert min(len(broken), len(whole)) >= 7
        assert all(f"chatcmpl-mock-{ports[0]}-".encode() in text for text in broken)
        assert all(f"chatcmpl-mock-{ports[1]}-".encode() in text for text in whole)
        assert all(b'"code":"upstream_died"' in text and text.endswith(b"<unclean>") for text in broken)
        assert not any(b"<unclean>" in text for text in whole)


@pytest.mark.e2e
async def test_a_stopped_replica_leaves_by_our_probes_and_comes_back_by_them_A4(node: Node) -> None:
    port = free_port()
    async with mock(node.folder, port) as server:
        flags = ("--health-interval", "0.3", "--health-timeout", "0.3", "--max-errors", "2")
        async with node.router("--static-services", static_file(node.folder, port), *flags):
            await node.until(node.chats)

            async def healthy() -> bool:
                return bool((await node.get("/services"))["services"][0]["healthy"])

            async def unhealthy() -> bool:
                return not await healthy()

            server.send_signal(signal.SIGSTOP)
            await node.until(unhealthy)
            assert (await node.get("/models"))["data"] == []
            server.send_signal(signal.SIGCONT)
            await node.until(healthy)
            assert await node.chat() == 200


async def errors(call: Call) -> None:
    await call.send(plain(b'{"error":{}}', status=b"500 Internal Server Error"))


async def test_one_clients_poison_does_not_eject_A19(plane: Plane) -> None:
    plane.route(await plane.add(errors), await plane.add(errors))
    for _ in range(30):
        assert (await plane.post(CHAT)).status == 500  # passed on: it may be the prompt's fault
    assert plane.engine.outliers.ejected(plane.engine.now()) == []


async def test_a_replica_that_is_sick_for_two_clients_is_ejected_but_never_the_fleet_A19(plane: Plane) -> None:
    keys = "one", "two"
    plane.engine.set_keys(tuple(Key(name=key, sha256=hashlib.sha256(key.encode()).hexdigest()) for key in keys))

    async def twenty(key: str) -> list[int]:
        return [(await plane.post(CHAT, headers=f"authorization: Bearer {key}\r\n")).status for _ in range(20)]

    sick, _ = plane.route(await plane.add(errors), await plane.add(answer_ok))
    assert 500 in await twenty("one")
    assert plane.engine.outliers.ejected(plane.engine.now()) == []
    assert await twenty("two") == [200] * 20  # W48: it is no longer one client's affair, so another replica is asked
    assert plane.engine.outliers.ejected(plane.engine.now()) == [sick.id]
    assert await twenty("one") == [200] * 20
    plane.route(await plane.add(errors), await plane.add(errors))
    assert await twenty("one") + await twenty("two") == [500] * 40
    assert len(plane.engine.outliers.ejected(plane.engine.now())) == 1


async def test_a_500_is_tried_once_elsewhere_when_several_clients_got_one_W48(plane: Plane) -> None:
    names = "one", "two"
    plane.engine.set_keys(tuple(Key(name=one, sha256=hashlib.sha256(one.encode()).hexdigest()) for one in names))
    sick = await plane.add(errors)
    plane.route(sick, await plane.add(answer_ok))

    async def until_sick(name: str, path: str) -> int:
        """The status that a client gets when the sick replica was asked."""
        before = len(sick.calls)
        while len(sick.calls) == before:
            status = (await plane.post(CHAT, path, headers=f"authorization: Bearer {name}\r\n")).status
        return status

    assert await until_sick("one", "/v1/chat/completions") == 500  # so far it may be the prompt's fault
    assert await until_sick("two", "/v1/responses") == 500  # what was kept there would be kept twice
    assert await until_sick("two", "/v1/chat/completions") == 200
    assert await until_sick("one", "/v1/chat/completions") == 200


async def test_a_500_is_tried_elsewhere_when_the_replicas_health_changed_meanwhile_W48(plane: Plane) -> None:
    arrived, go = asyncio.Event(), asyncio.Event()

    async def dies(call: Call) -> None:
        arrived.set()
        await go.wait()
        await errors(call)

    dying, well = await plane.add(dies), await plane.add(answer_ok)
    [endpoint] = plane.route(dying)
    asked = asyncio.ensure_future(plane.post(CHAT))
    await arrived.wait()
    other = replace(endpoint, id="w", name="w", port=well.port, slot=1)
    plane.engine.set_table(Table.of(99, (replace(endpoint, eligibility=Eligibility.DOWN), other)))
    go.set()
    assert (await asked).status == 200
    assert len(well.calls) == 1


async def test_a_500_of_every_replica_is_told_after_one_more_try_W48(plane: Plane) -> None:
    names = "one", "two"
    plane.engine.set_keys(tuple(Key(name=one, sha256=hashlib.sha256(one.encode()).hexdigest()) for one in names))
    replicas = [await plane.add(errors) for _ in range(4)]
    plane.route(*replicas)
    for name in names * 4:
        before = sum(len(replica.calls) for replica in replicas)
        assert (await plane.post(CHAT, headers=f"authorization: Bearer {name}\r\n")).status == 500
        assert sum(len(replica.calls) for replica in replicas) - before <= 2


async def test_a_replica_that_only_passes_probes_is_set_aside_A5(planes: MakePlane) -> None:
    async def hangs(call: Call) -> None:
        await call.until_gone()

    plane = await planes(first_byte_timeout_s=0.1)
    stuck, _ = plane.route(await plane.add(hangs), await plane.add(answer_ok))
    statuses = []
    for _ in range(40):
        statuses.append((await plane.post(CHAT)).status)
        if plane.engine.outliers.ejected(plane.engine.now()):
            break
    assert statuses.count(504) == 5
    assert plane.engine.outliers.ejected(plane.engine.now()) == [stuck.id]
    # The master's verdict by probe comes with a new table; it does not bring the endpoint back.
    plane.engine.set_table(plane.engine.table)
    assert {(await plane.post(CHAT)).status for _ in range(10)} == {200}


async def test_a_replica_that_takes_no_connection_costs_one_timeout_D21(planes: MakePlane) -> None:
    plane = await planes(connect_timeout_s=0.3)
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for filler in (first, second):  # the backlog is full: further connects get no answer at all
            filler.setblocking(False)  # noqa: FBT003 - the socket module's own form
            filler.connect_ex(deaf.getsockname())
        plane.route(deaf.getsockname()[1], await plane.add(answer_ok))
        began = asyncio.get_running_loop().time()
        replies = [await plane.post(CHAT) for _ in range(12)]
        assert {reply.status for reply in replies} == {200}
        assert [reply.header("x-attempts") for reply in replies].count(
            "2"
        ) == 1  # it is set aside at the first time-out
        assert asyncio.get_running_loop().time() - began < 3


async def test_a_slow_replica_does_not_hold_up_the_others_D7(plane: Plane) -> None:
    go = asyncio.Event()

    async def stuck(call: Call) -> None:
        await go.wait()
        await answer_ok(call)

    slow = await plane.add(stuck)
    plane.route(slow, await plane.add(answer_ok), await plane.add(answer_ok))
    posts = [asyncio.ensure_future(plane.post(CHAT)) for _ in range(150)]
    async with asyncio.timeout(10):
        while sum(post.done() for post in posts) < 140:
            await asyncio.sleep(0.01)
    assert 0 < len(slow.calls) <= 10  # W45: ties go to the fewest under way; rotation gave it its fifty
    go.set()
    assert {(await post).status for post in posts} == {200}


async def test_a_name_that_does_not_resolve_ejects_and_does_not_crash_D20(plane: Plane) -> None:
    good = await plane.add(answer_ok)
    plane.route(good, good, host="localhost")
    assert (await plane.post(CHAT)).status == 200
    [lost] = plane.route(9, host="no-such-host.invalid")
    reply = await plane.post(CHAT)
    assert plane.engine.outliers.ejected(plane.engine.now()) == [lost.id]
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (503, "connect_failed")


async def test_the_router_recovers_when_it_ran_out_of_descriptors_D19(plane: Plane) -> None:
    go = asyncio.Event()

    async def streams(call: Call) -> None:
        await call.send(SSE_HEAD + event("one"))
        await go.wait()
        await call.send(DONE)

    plane.route(await plane.add(streams))
    reader, writer = await plane.open()
    writer.write(request(STREAM))
    await reader.readuntil(event("one"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 20, hard))
    taken: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            take_descriptors(taken)
        os.close(taken.pop())
        before = len(plane.engine.clients)
        late_reader, late_writer = await plane.open()  # the last descriptor is the client's own
        late_writer.write(request(CHAT))
        late = await read_reply(late_reader, wait_s=1)  # libuv closes what it cannot take
        late_writer.close()
        assert late.raw == b""
        assert len(plane.engine.clients) == before
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    go.set()
    assert (await read_reply(reader)).raw.endswith(DONE)
    writer.close()
    plane.route(await plane.add(answer_ok))
    assert (await plane.post(CHAT)).status == 200


def test_the_http_library_is_new_enough_D31() -> None:
    assert Version(version("aiohttp")) >= Version("3.14.3")


async def test_replaced_replicas_leave_nothing_behind_D30(plane: Plane) -> None:
    async def replace_it(number: int) -> None:
        """A table with one new replica; what is held of the one before must go at once."""
        before = plane.replicas[-1] if plane.replicas else None
        fresh = await plane.add(close_at_once if number % 3 == 0 else answer_ok)
        plane.route(fresh)
        if before is not None:
            async with asyncio.timeout(2):  # below the four seconds after which an idle connection is closed anyhow
                while before._open:
                    await asyncio.sleep(0.001)
            plane.replicas.remove(before)
            await before.stop()
        assert (await plane.post(CHAT)).status == (200 if number % 3 else 502)

    def held() -> tuple[int, int]:
        return descriptors(), len(asyncio.all_tasks())

    for number in range(1, 11):
        await replace_it(number)
    before = held()
    for number in range(11, 311):
        await replace_it(number)
    async with asyncio.timeout(5):
        while any(now > then for now, then in zip(held(), before, strict=True)):
            await asyncio.sleep(0.01)
    assert list(plane.engine.connector._pools) == [endpoint.id for endpoint in plane.engine.table.endpoints]
    assert plane.engine.outliers.quiet


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.e2e
async def test_memory_is_flat_over_200000_mixed_requests_D30(node: Node) -> None:
    ports = free_port(), free_port()
    async with (
        mock(node.folder, ports[0]),
        mock(node.folder, ports[1]),
        node.router("--static-services", static_file(node.folder, *ports), "--workers", "1") as router,
    ):
        await node.until(node.chats)
        worker = psutil.Process(router.pid).children()[0]

        async def mixed(count: int) -> None:
            async def client(number: int) -> None:
                for turn in range(count // 32):
                    body: dict[str, Any] = {
                        "model": "m",
                        "max_tokens": 2,
                        "messages": [{"role": "user", "content": "x"}],
                    }
                    body["stream"] = turn % 4 == 0
                    body["model"] = "absent" if turn % 10 == 9 else "m"
                    async with node.http.post(f"{node.url}/chat/completions", json=body) as answer:
                        if (turn + number) % 50 == 0:
                            answer.close()  # a client that leaves
                        else:
                            await answer.read()

            await asyncio.gather(*(client(number) for number in range(32)))

        await mixed(20_000)
        before = worker.memory_info().rss
        await mixed(180_000)
        grown = worker.memory_info().rss - before
        assert grown < 5 << 20, grown
        services = (await node.get("/services"))["services"]
        assert [service["in_flight"] for service in services] == [0, 0]


async def test_ten_thousand_posts_to_servers_that_close_idle_sockets_D9(planes: MakePlane) -> None:
    plane = await planes(connect_timeout_s=10.0)  # the doubles keep every call: looking through them may take seconds
    served = 0

    async def answer(call: Call) -> None:
        nonlocal served
        served += 1
        await answer_ok(call)
        if served % 7 == 0:
            call.close()

    plane.route(await plane.add(answer))
    reader, writer = await plane.open()
    for _ in range(10_000):
        writer.write(request(CHAT, headers="connection: keep-alive\r\n"))
        assert (await read_reply(reader)).status == 200
    writer.close()


async def test_fake_replica_counts_connections() -> None:
    """The double itself: a kept connection is one connection."""
    async with FakeReplica(answer_ok) as fake:
        reader, writer = await asyncio.open_connection("127.0.0.1", fake.port)
        for _ in range(2):
            writer.write(request(CHAT, headers="connection: keep-alive\r\n"))
            assert (await read_reply(reader)).status == 200
        assert (fake.connections, len(fake.calls)) == (1, 2)
        writer.close()


async def test_fake_replica_resets(plane: Plane) -> None:
    """The double itself: a reset is a RST, not a FIN."""

    async def resets(call: Call) -> None:
        call.reset()

    fake = await plane.add(resets)
    reader, writer = await asyncio.open_connection("127.0.0.1", fake.port)
    writer.write(request(CHAT))
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 5)
    writer.close()
