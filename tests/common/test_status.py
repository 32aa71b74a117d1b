"""The status of an answer, from servers that answer well, in pieces, with more than was wanted, or with no HTTP at all."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.discovery.plan import Plan
from common.http.status import LINGER_S, LONGEST_HEAD, get_status, is_plain
from tests.ports import free_port, is_free


@pytest.mark.parametrize(
    ("plan", "plain"),
    [
        (Plan("127.0.0.1", 80), True),
        (Plan("::1", 80), True),
        (Plan("gpu1", 80), False),
        (Plan("127.1", 80), False),
        (Plan("127.0.0.1", 80, tls=True), False),
        (Plan("127.0.0.1", 80, authorization="Bearer k"), False),
    ],
)
def test_names_tls_and_keys_are_a_sessions_work(plan: Plan, plain: bool) -> None:  # noqa: FBT001 - a table's column
    assert is_plain(plan) is plain


@asynccontextmanager
async def server(*pieces: bytes, at: str = "127.0.0.1", pause_s: float = 0.02) -> AsyncIterator[tuple[Plan, list[str]]]:
    """Answers with `pieces`; yields where it is, and what it met: a request, `whole` for an answer that was taken, or a fault."""
    met: list[str] = []
    answering: list[asyncio.Task[None] | None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.append(asyncio.current_task())
        met.append((await reader.readuntil(b"\r\n\r\n")).decode())
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
            writer.close()
            await writer.wait_closed()
            met.append("whole")
        except OSError as error:
            met.append(repr(error))

    async with await asyncio.start_server(answer, at, 0) as listening:
        yield Plan(at, listening.sockets[0].getsockname()[1], base_path="/team-a"), met
        await asyncio.gather(*filter(None, answering))


@pytest.mark.parametrize("at", ["127.0.0.1", "::1"])
async def test_head_in_pieces_and_a_body_that_comes_late_are_taken_to_their_end(at: str) -> None:
    head = (b"HTTP/1.1 ", b"503", b" Service Unavailable\r\nContent-Length: 6\r\n\r\n", b"sta", b"rts")
    async with server(*head, at=at) as (plan, met):
        assert await get_status(plan, "/health", timeout_s=5) == 503
        async with asyncio.timeout(5):
            while len(met) < 2:
                await asyncio.sleep(0.01)
    host = f"[{at}]" if ":" in at else at
    assert met[0].startswith(f"GET /team-a/health HTTP/1.1\r\nHost: {host}:{plan.port}\r\n")
    assert "\r\nConnection: close\r\n" in met[0]
    assert met[1] == "whole"


async def test_interim_answers_are_not_the_answer() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with server(early, early + b"HTTP/1.1 200 OK\r\n\r\n") as (plan, _):
        assert await get_status(plan, "/health", timeout_s=5) == 200


@pytest.mark.parametrize(
    "said",
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n",),
        (b"HTTP/2 200 OK\r\n\r\n",),
        (b"HTTP/1.1 2000 Odd\r\n\r\n",),
        (b"HTTP/1.1 200", b"0 Odd\r\n\r\n"),
    ],
)
async def test_what_is_no_http_1_is_said_to_be_none(said: tuple[bytes, ...]) -> None:
    async with server(*said) as (plan, _):
        with pytest.raises(ValueError, match="no HTTP/1 answer"):
            await get_status(plan, "/health", timeout_s=5)


async def test_interim_head_without_end_is_bounded() -> None:
    async with server(b"HTTP/1.1 103 Early Hints\r\n", *[b"A: " + b"b" * 9000 + b"\r\n"] * 9, pause_s=0) as (plan, _):
        with pytest.raises(ValueError, match="no HTTP/1 answer"):
            await get_status(plan, "/health", timeout_s=5)
    assert LONGEST_HEAD < 9 * 9000


async def test_who_says_nothing_hangs_up_or_is_not_there() -> None:
    async with server(b"HTTP/1.1 ") as (plan, _):
        with pytest.raises(ConnectionResetError):
            await get_status(plan, "/health", timeout_s=5)
    async with server(b"HTTP/1.1 ", pause_s=0.5) as (plan, met):
        with pytest.raises(TimeoutError):
            await get_status(plan, "/health", timeout_s=0.1)
        assert len(met) == 1
    with pytest.raises(ConnectionRefusedError):
        await get_status(Plan("127.0.0.1", free_port()), "/health", timeout_s=5)


SLOW = """
import asyncio, sys, uvicorn

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"20000000")]})
    await asyncio.sleep(0.05)
    await send({"type": "http.response.body", "body": b"x" * 20_000_000})

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), lifespan="off", log_level="warning", http=sys.argv[2])
"""


@pytest.mark.parametrize(
    "command",
    [
        ("-c", SLOW, "{port}", "h11"),
        ("-c", SLOW, "{port}", "httptools"),
        ("-m", "http.server", "{port}", "-b", "127.0.0.1"),
    ],
    ids=["uvicorn-h11", "uvicorn-httptools", "http.server"],
)
async def test_real_servers_are_read_to_the_end_and_log_no_fault(command: tuple[str, ...], tmp_path: Path) -> None:
    """Python's own tells of an exception for an answer that is cut off."""
    (tmp_path / "health").write_bytes(b"x" * 20_000_000)
    port, log = free_port(), tmp_path / "log"
    told = [argument.format(port=port) if argument == "{port}" else argument for argument in command]
    with log.open("wb") as stderr:
        child = await asyncio.create_subprocess_exec(
            sys.executable, *told, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=stderr
        )
    try:
        async with asyncio.timeout(60):
            while is_free(port):
                await asyncio.sleep(0.05)
        took = []
        for _ in range(3):
            began = time.monotonic()
            assert await get_status(Plan("127.0.0.1", port), "/health", timeout_s=10) == 200
            took.append(time.monotonic() - began)
        assert min(took) < LINGER_S, "it closes when it was asked to"
    finally:
        child.terminate()
        await child.wait()
    assert "Exception" not in log.read_text()
