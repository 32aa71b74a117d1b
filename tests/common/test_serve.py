import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import uvloop
from aiohttp import ClientSession, web

from common.exits import ConfigurationError
from common.http.serve import Address, bound_port, explain_bind, start, stop_serving, stop_signals, until_stopped
from common.tasks import TaskFailed, TaskScope


async def test_start_serves_at_a_port_chosen_by_the_kernel() -> None:
    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = await start(app, Address("127.0.0.1", 0), drain_timeout_s=1, what="sample")
    try:
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{bound_port(runner)}/") as answer:
            assert await answer.text() == "hello"
    finally:
        await runner.cleanup()


async def test_a_taken_port_names_its_holder_and_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError) as caught:
            await start(web.Application(), Address("127.0.0.1", port), drain_timeout_s=1, what="sample")
    message = str(caught.value)
    assert message.startswith(f"sample: 127.0.0.1:{port} is taken by pid {os.getpid()} (")
    assert message.endswith("; stop it or choose another port")


async def test_an_address_of_another_machine_is_refused_with_its_reason() -> None:
    with pytest.raises(ConfigurationError, match=r"sample: cannot listen on 192\.0\.2\.1:0: "):
        await start(web.Application(), Address("192.0.2.1", 0), drain_timeout_s=1, what="sample")


def test_a_low_port_without_permission_is_explained() -> None:
    message = explain_bind(PermissionError(13, "Permission denied"), Address("127.0.0.1", 80), "sample")
    assert message == "sample: no permission to listen on 127.0.0.1:80; choose a port above 1023"


async def test_cleanup_lets_a_handler_finish_within_the_drain_time() -> None:
    began = asyncio.Event()
    release = asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        began.set()
        await release.wait()
        return web.Response(text="whole")

    app = web.Application()
    app.router.add_get("/", slow)
    runner = await start(app, Address("127.0.0.1", 0), drain_timeout_s=10, what="sample")

    async def ask() -> str:
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{bound_port(runner)}/") as answer:
            return await answer.text()

    asking = asyncio.create_task(ask())
    await began.wait()
    closing = asyncio.create_task(runner.cleanup())
    await asyncio.sleep(0)
    release.set()
    assert await asking == "whole"
    await closing


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """The head of an answer on a kept connection; empty when that is closed."""
    writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(5)
    except (EOFError, ConnectionError):
        return ""
    return head.decode().lower()


async def test_a_stop_answers_what_kept_connections_still_ask_and_tells_them_that_it_closes() -> None:
    release, began = asyncio.Event(), asyncio.Event()

    async def hello(_request: web.Request) -> web.Response:
        if release.is_set():
            return web.Response(text="hello")
        began.set()
        await release.wait()
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = await start(app, Address("127.0.0.1", 0), drain_timeout_s=10, what="sample")
    port = bound_port(runner)
    busy, kept, silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    asking = asyncio.create_task(ask(*busy))
    await began.wait()
    stopping = asyncio.create_task(stop_serving(runner))
    await asyncio.sleep(0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    release.set()
    for head in (await ask(*kept), await asking):
        assert head.startswith("http/1.1 200")
        assert "connection: close" in head
    await asyncio.wait_for(stopping, 5)
    assert await silent[0].read() == b""
    for _, writer in (busy, kept, silent):
        writer.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_until_stopped_ends_at_a_signal(number: signal.Signals) -> None:
    async with TaskScope("scope") as scope:
        waiting = asyncio.create_task(until_stopped(scope))
        await asyncio.sleep(0)
        os.kill(os.getpid(), number)
        await waiting
    for handled in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(handled)


async def test_a_signal_during_the_start_is_not_lost() -> None:
    stop = stop_signals()
    os.kill(os.getpid(), signal.SIGTERM)
    async with TaskScope("scope") as scope, asyncio.timeout(5):
        await until_stopped(scope, stop)
    for handled in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(handled)


async def test_until_stopped_raises_the_failure_of_a_task() -> None:
    async with TaskScope("scope") as scope:
        scope.spawn("one", asyncio.sleep(0), service=True)
        with pytest.raises(TaskFailed, match=r"scope\.one"):
            await until_stopped(scope)
    for handled in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(handled)


def run_service(body: str, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A whole process: `common.service.run` around `body`, the coroutine of a service."""
    code = f"""
import asyncio, sys
from aiohttp import web
from common.http.serve import Address, start
from common.exits import ConfigurationError
from common.service import ServiceSettings, run
from common.settings import option
from common.tasks import TaskFailed

class Sample(ServiceSettings):
    port: int = option(0, "Port.")

async def serve(settings):
    {body}

sys.exit(run("sample", Sample, serve))
"""
    return subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


def test_run_returns_0_when_the_service_ends_well() -> None:
    assert run_service("print(settings.port)", "--port", "7").stdout == "7\n"


def test_run_tells_wrong_settings_in_one_line_and_ends_with_78() -> None:
    done = run_service("pass", SVC_SAMPLE_PORT="many")
    assert done.returncode == 78
    assert done.stderr.startswith("svc-sample: error: environment SVC_SAMPLE_PORT: 'port': ")
    assert len(done.stderr.splitlines()) == 1


def test_run_tells_a_taken_port_in_one_line_and_ends_with_78() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        body = "await start(web.Application(), Address('127.0.0.1', settings.port), drain_timeout_s=1, what='sample')"
        done = run_service(body, "--port", str(port))
    assert done.returncode == 78
    assert f"127.0.0.1:{port} is taken by pid {os.getpid()}" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_ends_with_70_when_a_task_failed() -> None:
    done = run_service("raise TaskFailed('task x ended by itself')")
    assert done.returncode == 70
    assert "task x ended by itself" in done.stderr


def test_run_refuses_an_unknown_log_level() -> None:
    done = run_service("pass", "--log-level", "loud")
    assert done.returncode == 78
    assert "--log-level" in done.stderr


def test_a_lookup_that_does_not_come_back_does_not_hold_the_end_W60() -> None:
    """As a resolver does whose DNS server is gone: the loop's own threads are stuck in it."""
    body = """
    import time
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)
    raise TaskFailed('over')"""
    began = time.monotonic()
    assert run_service(body).returncode == 70
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("accepters", [1, 8])
def test_so_many_connections_are_taken_in_a_turn_of_the_loop(accepters: int) -> None:
    async def turns_of(count: int) -> int:
        runner = await start(
            web.Application(), Address("127.0.0.1", 0), drain_timeout_s=1, what="sample", accepters=accepters
        )
        server = runner.server
        assert server is not None
        clients = [socket.create_connection(("127.0.0.1", bound_port(runner))) for _ in range(count)]
        turns = 0
        while len(server.connections) < count:
            turns += 1
            await asyncio.sleep(0)
        for client in clients:
            client.close()
        await runner.cleanup()
        return turns

    turns = uvloop.run(turns_of(80))
    assert (turns <= 20) == (accepters == 8)
