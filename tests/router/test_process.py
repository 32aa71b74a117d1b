"""The router as a process: master, workers and a real registry, on loopback, ended by their process ids."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from fastapi import FastAPI, WebSocket
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from tests.ports import free_port
from tests.router.fakes import DONE, SSE_HEAD, Call, FakeReplica, event, plain
from tests.router.realtime import uvicorn_server

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


async def answer_ok(call: Call) -> None:
    if call.line.startswith(b"GET"):
        await call.send(plain(b'{"object":"list","data":[{"id":"m"}]}'))
    else:
        await call.send(plain(b'{"ok":1}'))


def running(master: psutil.Process) -> set[int]:
    """The ids of its children, without those that have ended and those that end while they are looked at."""
    found = set()
    for child in master.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found.add(child.pid)
    return found


@asynccontextmanager
async def process(module: str, *arguments: str, cwd: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = cwd / f"{module}.log"
    with log.open("ab") as output:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, *arguments, cwd=cwd, env=environment, stdout=output, stderr=output
        )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
            try:
                await asyncio.wait_for(child.wait(), 15)
            except TimeoutError:
                child.kill()
                await child.wait()
                raise


class Node:
    """A registry and a router under test."""

    def __init__(self, folder: Path, http: aiohttp.ClientSession) -> None:
        self.folder = folder
        self.http = http
        self.registry_port, self.router_port = free_port(), free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.router_port}"

    def registry(self) -> Any:
        return process("registry", "--port", str(self.registry_port), "--store", "memory://", cwd=self.folder)

    def router(self, *more: str) -> Any:
        plain_flags = (
            "--router-port",
            str(self.router_port),
            "--registry-url",
            f"http://127.0.0.1:{self.registry_port}",
        )
        return process("router", *plain_flags, "--workers", "2", "--health-interval", "0.5", *more, cwd=self.folder)

    async def register(self, name: str, port: int) -> None:
        record = {
            "name": name,
            "host": "127.0.0.1",
            "port": port,
            "hostname": "h",
            "url": f"http://127.0.0.1:{port}",
            "status": "running",
            "metadata": {"type": "openai-api", "models": ["m"]},
        }
        async with self.http.post(f"http://127.0.0.1:{self.registry_port}/services", json=record) as answer:
            assert answer.status == 201

    async def deregister(self, name: str) -> None:
        async with self.http.delete(f"http://127.0.0.1:{self.registry_port}/services/{name}") as answer:
            assert answer.status == 200

    async def chat(self) -> int:
        async with self.http.post(f"{self.url}/chat/completions", json=CHAT) as answer:
            await answer.read()
            return answer.status

    async def get(self, path: str) -> Any:
        async with self.http.get(self.url + path) as answer:
            return json.loads(await answer.read())

    async def counted(self, requests: int) -> bool:
        """Workers tell what they counted four times a second."""
        services = (await self.get("/services"))["services"]
        return bool(sum(one["request_count"] for one in services) >= requests)

    async def until(self, holds: Callable[[], Awaitable[bool]], wait_s: float = 45) -> None:
        async with asyncio.timeout(wait_s):
            while True:
                try:
                    if await holds():
                        return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.02)

    async def chats(self) -> bool:
        return await self.chat() == 200

    async def until_listening(self, port: int) -> None:
        async def listening() -> bool:
            async with self.http.get(f"http://127.0.0.1:{port}/health") as answer:
                return answer.status == 200

        await self.until(listening)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with aiohttp.ClientSession() as http:
        yield Node(tmp_path, http)


@pytest.fixture
async def replica() -> AsyncIterator[FakeReplica]:
    async with FakeReplica(answer_ok) as fake:
        yield fake


async def test_a_registered_replica_is_routed_at_once_and_its_goodbye_obeyed(node: Node, replica: FakeReplica) -> None:
    async with node.registry() as registry, node.router():
        await node.until_listening(node.registry_port)
        await node.until_listening(node.router_port)
        assert await node.chat() == 503
        loop = asyncio.get_running_loop()
        await node.register("a-server", replica.port)
        began = loop.time()
        await node.until(node.chats)
        assert loop.time() - began < 5  # polls of the registry would take ten
        assert (await node.get("/health"))["healthy_services"] == "1/1"
        assert [model["id"] for model in (await node.get("/v1/models"))["data"]] == ["m"]
        assert (await node.get("/models/m"))["id"] == "m"
        assert "error" in await node.get("/v1/models/other")
        await node.until(lambda: node.counted(1))
        [service] = (await node.get("/services"))["services"]
        assert (service["name"], service["healthy"], service["in_flight"]) == ("a-server", True, 0)
        assert service["request_count"] == (await node.get("/stats"))["services"][0]["request_count"] > 0
        # The registry goes: the table stays.
        registry.kill()
        await registry.wait()
        await asyncio.sleep(1)
        assert await node.chat() == 200
    async with node.registry(), node.router():
        # Both are new: the registry is empty, the router has its last table and its own probe.
        await node.until_listening(node.registry_port)
        await node.until(node.chats)

        async def followed() -> bool:
            return (await node.get("/health"))["registry_error"] is None

        await node.until(followed)  # a goodbye before that is not heard: the record is then merely absent
        await node.register("a-server", replica.port)
        await node.deregister("a-server")

        async def gone() -> bool:
            return await node.chat() == 503

        await node.until(gone)


async def test_router_with_an_empty_registry_url_follows_none_and_serves_its_static_services_W42(
    node: Node, replica: FakeReplica
) -> None:
    static = node.folder / "static.json"
    static.write_text(
        json.dumps([{"name": "s", "host": "127.0.0.1", "port": replica.port, "weight": None, "metadata": None}])
    )
    async with node.router("--registry-url", "", "--static-services", str(static)):
        await node.until(node.chats)
        health = await node.get("/health")
        assert (health["registry_url"], health["registry_error"], health["healthy_services"]) == ("", None, "1/1")
        assert datetime.fromisoformat(health["timestamp"]).tzinfo is not None
        for path in ("/health", "/services", "/stats", "/v1/models", "/v1/models/none"):
            async with node.http.get(node.url + path) as answer:
                raw = await answer.read()
            assert b'": ' not in raw  # W35
            assert b', "' not in raw


async def test_adapter_loaded_later_and_a_model_swapped_behind_the_address_are_routed_W15(node: Node) -> None:
    models = ["m"]

    async def answer(call: Call) -> None:
        if call.line.startswith(b"GET"):
            await call.send(plain(json.dumps([{"id": name} for name in models]).encode()))
        else:
            await answer_ok(call)

    async def listed() -> bool:
        return {model["id"] for model in (await node.get("/v1/models"))["data"]} == set(models)

    async def chatted(model: str) -> int:
        async with node.http.post(f"{node.url}/v1/chat/completions", json={**CHAT, "model": model}) as answered:
            return answered.status

    async with FakeReplica(answer) as fake:
        static = node.folder / "static.json"
        static.write_text(json.dumps([{"name": "s", "host": "127.0.0.1", "port": fake.port}]))
        async with node.router("--static-services", str(static)):
            await node.until(node.chats)
            for changed in (["m", "lora"], ["other"], [f"model-{number}" for number in range(2000)]):
                models[:] = changed
                await node.until(listed)

                async def is_served(
                    model: str = changed[-1],
                ) -> bool:  # by the other worker, too, which hears of it after
                    return [await chatted(model) for _ in range(8)] == [200] * 8

                await node.until(is_served)
            assert await chatted("m") == 503


async def test_replicas_beyond_max_endpoints_are_told_W16(node: Node, replica: FakeReplica) -> None:
    static = node.folder / "static.json"
    static.write_text(json.dumps([{"name": f"s{n}", "host": "127.0.0.1", "port": replica.port} for n in range(5)]))
    async with node.router("--static-services", str(static), "--max-endpoints", "3"):
        await node.until(node.chats)
        health = await node.get("/health")
        assert (health["healthy_services"].split("/")[1], health["left_out"]) == ("5", 2)
        async with node.http.get(f"{node.url}/metrics") as answer:
            assert b"svc_router_replicas_left_out 2.0" in await answer.read()


async def test_a_killed_worker_is_replaced_and_no_connection_refused(node: Node, replica: FakeReplica) -> None:
    static = node.folder / "static.json"
    static.write_text(json.dumps([{"name": "s", "host": "127.0.0.1", "port": replica.port}]))
    async with node.router("--static-services", str(static)) as router:
        await node.until_listening(node.router_port)
        await node.until(node.chats)
        master = psutil.Process(router.pid)
        victim = master.children()[0].pid
        os.kill(victim, signal.SIGKILL)

        async def replaced() -> bool:
            alive = running(master)
            return victim not in alive and len(alive) == 2

        await node.until(replaced)
        for _ in range(20):  # new connections, so that both listening sockets are tried
            async with (
                aiohttp.ClientSession() as fresh,
                fresh.post(f"{node.url}/v1/chat/completions", json=CHAT) as answer,
            ):
                assert answer.status == 200


async def test_sigterm_lets_a_stream_finish_and_leaves_nothing_behind_D16(node: Node, replica: FakeReplica) -> None:
    go = asyncio.Event()

    async def answer(call: Call) -> None:
        if call.line.startswith(b"GET"):
            await answer_ok(call)
            return
        await call.send(SSE_HEAD + event("one"))
        await go.wait()
        await call.send(DONE)

    replica.script = answer
    static = node.folder / "static.json"
    static.write_text(
        json.dumps(
            {"services": [{"name": "s", "host": "127.0.0.1", "port": replica.port, "metadata": {"models": ["m"]}}]}
        )
    )
    async with node.router("--static-services", str(static)) as router:
        await node.until_listening(node.router_port)
        workers = [child.pid for child in psutil.Process(router.pid).children()]
        async with node.http.post(f"{node.url}/v1/chat/completions", json={**CHAT, "stream": True}) as stream:
            assert b"one" in await stream.content.readany()
            router.terminate()

            async def refused() -> bool:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", node.router_port)
                except ConnectionRefusedError:
                    return True
                writer.close()
                return False

            await node.until(refused)
            go.set()
            assert b"[DONE]" in await stream.content.read()
        assert await asyncio.wait_for(router.wait(), 10) == 0
        assert not any(psutil.pid_exists(pid) for pid in workers)


async def test_sigterm_closes_a_websocket_after_the_drain_D33(node: Node) -> None:
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "m"}]}

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")
        with contextlib.suppress(WebSocketDisconnect):
            await socket.receive_text()

    static = node.folder / "static.json"
    async with uvicorn_server(app) as port:
        service = {"name": "s", "host": "127.0.0.1", "port": port, "metadata": {"models": ["m"]}}
        static.write_text(json.dumps({"services": [service]}))
        async with node.router("--static-services", str(static), "--drain-timeout", "1") as router:
            await node.until_listening(node.router_port)
            url = f"ws://127.0.0.1:{node.router_port}/v1/realtime?model=m"
            async with connect(url, proxy=None) as client:
                assert await client.recv() == "hello"
                assert (await node.get("/services"))["services"][0]["in_flight"] == 1
                router.terminate()
                with pytest.raises(ConnectionClosedError) as closed:
                    await client.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1012
            assert await asyncio.wait_for(router.wait(), 10) == 0


async def test_workers_end_when_their_master_is_killed_so_that_a_new_one_can_start_D17(
    node: Node, replica: FakeReplica
) -> None:
    static = node.folder / "static.json"
    static.write_text(json.dumps([{"name": "s", "host": "127.0.0.1", "port": replica.port}]))
    async with node.router("--static-services", str(static)) as router:
        await node.until(node.chats)
        workers = [child.pid for child in psutil.Process(router.pid).children()]
        router.kill()
        await router.wait()

        async def ended() -> bool:
            return not any(psutil.pid_exists(pid) for pid in workers)

        await node.until(ended)
    async with node.router("--static-services", str(static)):
        await node.until(node.chats)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--router-port", "70000"], "--router-port: 'router_port'"),
        (["--host", "0.0.0.0"], "refusing to listen on 0.0.0.0"),
        (["--static-services", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--config", "router.toml"], "unknown key 'prot'"),
        (["--registry-token-file", "token"], "token file token"),
    ],
)
async def test_bad_settings_end_with_78_and_one_clear_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "router.toml").write_text("prot = 1\n")
    async with process("router", *arguments, cwd=tmp_path) as router:
        assert await asyncio.wait_for(router.wait(), 20) == 78
    lines = (tmp_path / "router.log").read_text().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


async def test_a_taken_port_names_its_holder(tmp_path: Path, replica: FakeReplica) -> None:
    async with process("router", "--router-port", str(replica.port), "--workers", "1", cwd=tmp_path) as router:
        assert await asyncio.wait_for(router.wait(), 20) == 78
    said = (tmp_path / "router.log").read_text()
    assert f"127.0.0.1:{replica.port} is taken by pid {os.getpid()}" in said


async def test_metrics_and_explain_through_the_routers_port(node: Node, replica: FakeReplica) -> None:
    static = node.folder / "static.json"
    static.write_text(
        json.dumps([{"name": "s", "host": "127.0.0.1", "port": replica.port, "metadata": {"models": ["m"]}}])
    )
    async with node.router("--static-services", str(static)):
        await node.until(node.chats)
        await node.until(lambda: node.counted(1))
        page = ""

        async def both_serve() -> bool:
            nonlocal page
            async with node.http.get(f"{node.url}/metrics") as answer:
                page = await answer.text()
            return "svc_router_workers 2.0" in page

        await node.until(both_serve)
        assert 'svc_router_requests_total{model="m",outcome="ok",replica="s"} 1.0' in page
        assert 'svc_router_time_to_first_byte_seconds_count{model="m",replica="s"} 1.0' in page
        assert 'svc_router_replicas{standing="fresh"} 1.0' in page
        async with node.http.post(f"{node.url}/admin/explain", json=CHAT) as answer:
            assert (await answer.json())["picked"].startswith("s@")


async def test_sighup_rolls_the_workers_and_no_request_is_lost_D18(node: Node, replica: FakeReplica) -> None:
    static = node.folder / "static.json"
    static.write_text(
        json.dumps([{"name": "s", "host": "127.0.0.1", "port": replica.port, "metadata": {"models": ["m"]}}])
    )
    async with node.router("--static-services", str(static)) as router:
        await node.until(node.chats)
        master = psutil.Process(router.pid)
        before = {child.pid for child in master.children()}
        statuses: list[int] = []

        async def load() -> None:
            while True:
                session = aiohttp.ClientSession()
                async with session as fresh, fresh.post(f"{node.url}/v1/chat/completions", json=CHAT) as answer:
                    statuses.append(answer.status)

        busy = asyncio.ensure_future(load())
        router.send_signal(signal.SIGHUP)

        async def rolled() -> bool:
            now = running(master)
            return len(now) == 2 and not now & before

        async def asked_often() -> bool:
            return len(statuses) > 20 or busy.done()

        await node.until(rolled)
        await node.until(asked_often)  # a busy machine has rolled before it has asked so often
        assert not busy.done()
        busy.cancel()
        assert set(statuses) == {200}


async def test_files_are_taken_when_they_change_and_bad_ones_refused(node: Node, replica: FakeReplica) -> None:
    static, config = node.folder / "static.json", node.folder / "router.toml"
    entry = {"name": "s", "host": "127.0.0.1", "port": replica.port, "metadata": {"models": ["m"]}}
    static.write_text("[]")
    config.write_text("served_by = false\n")
    async with node.router("--static-services", str(static), "--config", str(config)):
        await node.until_listening(node.router_port)
        assert await node.chat() == 503
        static.write_text(json.dumps([entry]))
        await node.until(node.chats)
        static.write_text("[{]")
        config.write_text("served_bi = true\n")
        log = node.folder / "router.log"

        async def refused() -> bool:
            return "unknown key 'served_bi'" in log.read_text()

        await node.until(refused)
        assert await node.chat() == 200
        static.write_text(json.dumps([entry]))
        config.write_text("served_by = true\n")

        async def says_who() -> bool:
            async with node.http.post(f"{node.url}/chat/completions", json=CHAT) as answer:
                return answer.headers.get("x-served-by") == "s"

        await node.until(says_who)
        config.write_text("served_by = true\n[models.m]\nparameters.forced = { top_k = 7 }\n")

        async def changed_on_the_way() -> bool:
            await node.chat()
            asked = [call.body for call in replica.calls if call.body]
            return bool(json.loads(asked[-1]) == {**CHAT, "top_k": 7})

        await node.until(changed_on_the_way)
        config.write_text("served_by = true\nmax_endpoints = 77\n")

        async def told() -> bool:
            return '"need_restart":["max_endpoints"]' in log.read_text()

        await node.until(told)
        lines = [json.loads(line) for line in log.read_text().splitlines() if "config.reloaded" in line]
        assert ["served_by"] in [line["changed"] for line in lines]
        assert lines[-1]["changed"] == ["models"]
        assert lines[-1]["files"] == [str(config)]


async def test_a_settings_file_of_an_older_version_starts_and_is_warned_of(node: Node, replica: FakeReplica) -> None:
    static, config = node.folder / "static.json", node.folder / "router.toml"
    static.write_text(json.dumps([{"name": "s", "host": "127.0.0.1", "port": replica.port}]))
    config.write_text('prefix_blocks = 5000\npolicy = "prefix"\n[models.m]\npolicy = "random"\n')
    async with node.router("--static-services", str(static), "--config", str(config)):
        await node.until(node.chats)
        lines = [json.loads(line) for line in (node.folder / "router.log").read_text().splitlines() if line[:1] == "{"]
        warned = {line["setting"]: line["remedy"] for line in lines if line["event"] == "settings.retired"}
        assert warned.keys() == {"prefix_blocks", "policy", "models.m.policy"}
        assert "'cost'" in warned["policy"]


async def test_a_hung_worker_is_killed_and_replaced(node: Node, replica: FakeReplica) -> None:
    static = node.folder / "static.json"
    static.write_text(
        json.dumps([{"name": "s", "host": "127.0.0.1", "port": replica.port, "metadata": {"models": ["m"]}}])
    )
    async with node.router("--static-services", str(static)) as router:
        master = psutil.Process(router.pid)

        async def all_serve() -> bool:
            async with node.http.get(f"{node.url}/metrics") as answer:
                return "svc_router_workers 2.0" in await answer.text()

        await node.until(all_serve)  # one that still starts is given longer
        victim = master.children()[0].pid
        os.kill(victim, signal.SIGSTOP)

        async def replaced() -> bool:
            alive = running(master)
            return victim not in alive and len(alive) == 2

        await node.until(replaced)


async def test_a_restart_on_a_socket_that_systemd_holds_refuses_nobody_W59(tmp_path: Path) -> None:
    """The test is the socket unit: it keeps the port listening while one router ends and the next one starts."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        flags = f"--workers 2 --router-port 1 --registry-url= --data-dir {tmp_path}"
        start = f'export LISTEN_PID=$$ LISTEN_FDS=1; exec "{sys.executable}" -m router {flags} 3<&{held.fileno()}'
        answers: list[int] = []

        async def ask_all_the_time() -> None:
            while True:
                async with aiohttp.request("GET", f"http://127.0.0.1:{port}/health") as answer:
                    answers.append(answer.status)

        async def serve() -> asyncio.subprocess.Process:
            with (tmp_path / "log").open("ab") as log:
                return await asyncio.create_subprocess_exec(
                    "bash", "-c", start, pass_fds=[held.fileno()], stdout=log, stderr=log
                )

        asking = asyncio.ensure_future(ask_all_the_time())
        router = await serve()
        try:
            async with asyncio.timeout(90):
                for _ in range(2):
                    before = len(answers)
                    while len(answers) < before + 20 and not asking.done():
                        await asyncio.sleep(0.02)
                    router.terminate()
                    assert await router.wait() == 0, (tmp_path / "log").read_text()
                    router = await serve()
                before = len(answers)
                while len(answers) < before + 20 and not asking.done():
                    await asyncio.sleep(0.02)
            assert not asking.done(), asking.exception()
            assert set(answers) == {200}
        finally:
            asking.cancel()
            router.terminate()
            await router.wait()


@pytest.mark.parametrize(("address", "workers"), [("0.0.0.0", 1), ("127.0.0.1", 0)])
async def test_sockets_that_are_handed_over_are_judged_as_our_own_W59(
    tmp_path: Path, address: str, workers: int
) -> None:
    """One that the network reaches needs keys; and more than there are workers would be heard by nobody."""
    with socket.create_server((address, 0)) as held:
        handed = f"3<&{held.fileno()} 4<&{held.fileno()}"
        flags = f"--workers 1 --registry-url= --data-dir {tmp_path}"
        count = 2 - workers
        start = f'export LISTEN_PID=$$ LISTEN_FDS={count}; exec "{sys.executable}" -m router {flags} {handed}'
        done = await asyncio.create_subprocess_exec(
            "bash", "-c", start, pass_fds=[held.fileno()], stderr=asyncio.subprocess.PIPE
        )
        _, said = await done.communicate()
    assert done.returncode == 78
    assert (b"refusing to listen on 0.0.0.0 without" if workers else b"2 sockets are handed over for 1 workers") in said


async def test_a_router_needs_no_temporary_folder_and_is_quiet_at_its_end_W60(tmp_path: Path) -> None:
    """A read-only container without a tmpfs: only the folder of its data can be written."""
    data = Path(tempfile.mkdtemp(dir="/tmp"))
    code = (
        "import sys, tempfile; tempfile._candidate_tempdir_list = lambda: []\n"
        "from router.__main__ import main; sys.exit(main())"
    )
    flags = f"--workers 1 --router-port {free_port()} --registry-url= --data-dir {data}"
    with (tmp_path / "log").open("wb") as log:
        router = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, *flags.split(), stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(60):
            while "service.listening" not in (tmp_path / "log").read_text():
                assert router.returncode is None, (tmp_path / "log").read_text()
                await asyncio.sleep(0.05)
    finally:
        router.terminate()
        assert await router.wait() == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line for line in lines if line["level"] == "error"] == []
    assert not [path for path in data.iterdir() if path.is_dir()]
    shutil.rmtree(data)
