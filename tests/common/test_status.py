"""The status of an answer, from servers that answer well, in pieces, with more than was wanted, or with no HTTP at all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from common.discovery.plan import Plan
from common.http.status import LONGEST_HEAD, get_status, is_plain
from tests.ports import free_port


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


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/2 200 OK\r\n\r\n", b"HTTP/1.1 2000 Odd\r\n\r\n"])
async def test_what_is_no_http_1_is_said_to_be_none(said: bytes) -> None:
    async with server(said) as (plan, _):
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
