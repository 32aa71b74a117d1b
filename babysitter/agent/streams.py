"""What a replica tells while it happens: its event stream and its logs. Nothing here can change a replica."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientConnectionResetError, web

from babysitter.agent.changes import Event, changes, reason_to_end
from babysitter.agent.controller import ReplicaController
from babysitter.agent.requests import wrong
from babysitter.cbclient.modes import MODES
from babysitter.server_log import last_lines

LOOK_S = 0.2
BEAT_S = 10.0
STALL_S = 60.0
"""A reader that takes nothing for so long is let go."""
CHUNK_BYTES = 64 << 10
LAST_BYTES = 8 << 20
LINE_LIMIT = 16 << 10
STREAMS = ("stdout", "stderr", "worker", "deploy")
TRUE = frozenset({"1", "true", "yes"})


def log_path(controller: ReplicaController, stream: str) -> Path:
    """The file of one of `STREAMS`."""
    if stream == "worker":
        return controller.directory / "worker_stderr.log"
    if stream == "deploy":
        return controller.directory / "deploy.log"
    mode = MODES.get(str(controller.request.get("server_mode")))
    return controller.directory / f"{mode.logs if mode else 'replica'}_{stream}.log"


@dataclass(slots=True)
class LogFile:
    """A growing file, read from `offset` on, after what is `older`; one that was cut is read from its new beginning."""

    path: Path
    offset: int
    rest: bytes = b""
    older: bytes = b""

    def read(self) -> bytes:
        """The next bytes, at most a chunk; empty when there are none yet."""
        if self.older:
            raw, self.older = self.older, b""
            return raw
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                self.offset = 0 if size < self.offset else self.offset
                file.seek(self.offset)
                raw = file.read(CHUNK_BYTES)
        except OSError:
            return b""
        self.offset += len(raw)
        return raw

    def lines(self) -> list[str]:
        """The lines that were ended since."""
        *whole, self.rest = (self.rest + self.read()).split(b"\n")
        if len(self.rest) > LINE_LIMIT:
            whole.append(self.rest)
            self.rest = b""
        return [line.decode("utf-8", "replace") for line in whole]


def open_log(path: Path, tail: int) -> LogFile:
    """The file, to be read from its last `tail` lines on."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            first = max(0, size - (CHUNK_BYTES if tail <= CHUNK_BYTES // 80 else LAST_BYTES))
            file.seek(first)
            raw = file.read(size - first)
    except OSError:
        size, raw = 0, b""
    ended = raw.endswith(b"\n")
    lines = raw.split(b"\n")[: -1 if ended else None] if raw else []
    kept = b"\n".join(lines[-tail:] if tail else [])
    offset = size - (len(kept) + ended if tail else 0)
    missing = tail - len(lines) if offset == 0 else 0
    older = last_lines(path.with_name(f"{path.name}.1"), missing, LAST_BYTES) if missing > 0 else []
    return LogFile(path, offset, older="".join(f"{line}\n" for line in older).encode())


async def logs(request: web.Request, controller: ReplicaController) -> web.StreamResponse:
    """The end of a log, and what comes after when `follow` is given."""
    stream = request.query.get("stream", "stdout")
    if stream not in STREAMS:
        raise wrong("stream", f"must be one of {', '.join(STREAMS)}")
    file = await asyncio.to_thread(open_log, log_path(controller, stream), number(request, "tail", 100))
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"})
    follow = request.query.get("follow", "0").lower() in TRUE
    try:
        await response.prepare(request)
        while True:
            raw = await asyncio.to_thread(file.read)
            if raw:
                await _write(response, raw)
            elif not follow or not _is_open(request):
                break
            else:
                await asyncio.sleep(LOOK_S)
    except (ClientConnectionResetError, TimeoutError):
        return response
    return response


async def events(request: web.Request, controller: ReplicaController) -> web.StreamResponse:
    """The event stream, from a snapshot on."""
    until = request.query.get("until")
    if until not in (None, "ready"):
        raise wrong("until", "must be ready, or absent")
    names = [name for name in request.query.get("logs", "").split(",") if name]
    unknown = [name for name in names if name not in STREAMS]
    if unknown:
        raise wrong("logs", f"{unknown[0]!r} is none of {', '.join(STREAMS)}")
    tail = number(request, "tail", 0)
    files = {name: await asyncio.to_thread(open_log, log_path(controller, name), tail) for name in names}
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    try:
        await response.prepare(request)
        count = 0
        async for event in happenings(controller, until, files):
            if not _is_open(request):
                break
            if event is None:
                await _write(response, b": beat\n\n")
                continue
            count += 1
            await _write(response, encode(event, count))
    except (ClientConnectionResetError, TimeoutError):
        return response
    return response


async def happenings(
    controller: ReplicaController, until: str | None, files: Mapping[str, LogFile]
) -> AsyncIterator[Event | None]:
    """Events as they come, a None now and then when there are none, the last one `end`."""
    loop = asyncio.get_running_loop()
    before, moves = controller.info(), _moves(controller)
    yield Event("snapshot", before)
    said_at = loop.time()
    while True:
        # Before the logs: what was written until then is among them.
        after, moves_after = controller.info(), _moves(controller)
        for name, file in files.items():
            for line in await asyncio.to_thread(file.lines):
                said_at = loop.time()
                yield Event("log", {"stream": name, "line": line})
        for event in changes(before, after, moves_before=moves, moves_after=moves_after):
            said_at = loop.time()
            yield event
        before, moves = after, moves_after
        reason = reason_to_end(after, until)
        if reason is not None:
            yield Event("end", {"replica_id": controller.replica_id, "status": after["status"], "reason": reason})
            return
        if loop.time() - said_at >= BEAT_S:
            said_at = loop.time()
            yield None
        await asyncio.sleep(LOOK_S)


def encode(event: Event, number_: int) -> bytes:
    """One event of the stream."""
    data = json.dumps(event.data, separators=(",", ":"))
    return f"id: {number_}\nevent: {event.name}\ndata: {data}\n\n".encode()


def number(request: web.Request, name: str, default: int) -> int:
    """A query parameter that is a number of lines.

    Raises:
        ApiError: 422.
    """
    given = request.query.get(name, str(default))
    if not (given.isascii() and given.isdigit() and len(given) < len("10000000")):
        raise wrong(name, "must be a number of lines")
    return int(given)


def _moves(controller: ReplicaController) -> list[dict[str, Any]]:
    memory = controller.state().get("memory")
    found = memory.get("timeline") if isinstance(memory, dict) else None
    return found if isinstance(found, list) else []


def _is_open(request: web.Request) -> bool:
    return request.transport is not None and not request.transport.is_closing()


async def _write(response: web.StreamResponse, raw: bytes) -> None:
    async with asyncio.timeout(STALL_S):
        await response.write(raw)
