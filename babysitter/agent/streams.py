"""A replica's event stream and its logs, as they grow. Nothing here can change a replica."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
from aiohttp import ClientConnectionResetError, web

from babysitter.agent.changes import StreamEvent, changes, reason_to_end
from babysitter.agent.controller import ReplicaController
from babysitter.agent.requests import wrong
from babysitter.cbclient.modes import MODES
from babysitter.log_answer import is_open, number_of_lines, send_log, write
from common.log_tail import LogFile, open_log
from common.wire.stream import LogLine, StreamEnd

LOOK_S = 0.2
BEAT_S = 10.0
STREAMS = ("stdout", "stderr", "worker", "deploy")


def log_path(controller: ReplicaController, stream: str) -> Path:
    """The file of one of `STREAMS`."""
    if stream == "worker":
        return controller.directory / "worker_stderr.log"
    if stream == "deploy":
        return controller.directory / "deploy.log"
    if controller.request.server_mode is None:  # of a template
        return controller.directory / f"server_{controller.replica_id}_{stream}.log"
    mode = MODES.get(controller.request.server_mode or "")
    return controller.directory / f"{mode.logs if mode else 'replica'}_{stream}.log"


async def logs(request: web.Request, controller: ReplicaController) -> web.StreamResponse:
    """The end of a log, and what comes after when `follow` is given."""
    stream = request.query.get("stream", "stdout")
    if stream not in STREAMS:
        raise wrong("stream", f"must be one of {', '.join(STREAMS)}")
    return await send_log(request, log_path(controller, stream))


async def events(request: web.Request, controller: ReplicaController) -> web.StreamResponse:
    """The event stream, from a snapshot on."""
    until = request.query.get("until")
    if until not in (None, "ready"):
        raise wrong("until", "must be ready, or absent")
    names = [name for name in request.query.get("logs", "").split(",") if name]
    unknown = [name for name in names if name not in STREAMS]
    if unknown:
        raise wrong("logs", f"{unknown[0]!r} is none of {', '.join(STREAMS)}")
    tail = number_of_lines(request, 0)
    files = {name: await asyncio.to_thread(open_log, log_path(controller, name), tail) for name in names}
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    try:
        await response.prepare(request)
        count = 0
        async for event in happenings(controller, until, files):
            if not is_open(request):
                break
            if event is None:
                await write(response, b": beat\n\n")
                continue
            count += 1
            await write(response, encode(event, count))
    except (ClientConnectionResetError, TimeoutError):
        return response
    return response


async def happenings(
    controller: ReplicaController, until: str | None, files: Mapping[str, LogFile]
) -> AsyncIterator[StreamEvent | None]:
    """Events as they come, a None now and then when there are none, the last one `end`."""
    loop = asyncio.get_running_loop()
    before, moves = controller.info(), controller.state().memory.timeline
    yield StreamEvent("snapshot", before)
    said_at = loop.time()
    while True:
        # Before the logs: what was written until then is among them.
        after, moves_after = controller.info(), list(controller.state().memory.timeline)
        for name, file in files.items():
            for line in await asyncio.to_thread(file.lines):
                said_at = loop.time()
                yield StreamEvent("log", LogLine(stream=name, line=line))
        for event in changes(before, after, moves_before=moves, moves_after=moves_after):
            said_at = loop.time()
            yield event
        before, moves = after, moves_after
        reason = reason_to_end(after.status, until)
        if reason is not None:
            end = StreamEnd(replica_id=controller.replica_id, status=after.status, reason=reason)
            yield StreamEvent("end", end)
            return
        if loop.time() - said_at >= BEAT_S:
            said_at = loop.time()
            yield None
        await asyncio.sleep(LOOK_S)


def encode(event: StreamEvent, number_: int) -> bytes:
    """One event of the stream."""
    data = msgspec.json.encode(event.data).decode()
    return f"id: {number_}\nevent: {event.name}\ndata: {data}\n\n".encode()
