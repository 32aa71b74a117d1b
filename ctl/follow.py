"""Events of a replica or a deployment as they come: its stream where there is one, else by asking again and again; cuts are mended."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from urllib.parse import quote

from common.wire.base import JsonObject
from ctl.api import Api, Place
from ctl.codes import Code
from ctl.problem import Problem
from ctl.sse import Events, ServerSentEvent

NamedEvent = tuple[str, JsonObject]
"""An event's name and data."""
POLL_S = 0.5
PATIENCE_S = 60.0
"""So long a service may be away while something is waited for: a registry that restarts ends no wait."""
SILENCE_S = 45.0
"""A stream that says nothing for so long is dead; it beats every 10 s."""
NO_STREAM = frozenset({Code.NOT_FOUND, Code.REFUSED})


def path_of(replica_id: str, rest: str = "") -> str:
    """A replica's path."""
    return f"/api/v1/replicas/{quote(replica_id, safe='')}{rest}"


async def info_of(calls: Api, place: Place, replica_id: str) -> JsonObject:
    """A replica's info.

    Raises:
        Problem: There is none, or nobody answers.
    """
    answer = await calls.get(place, path_of(replica_id))
    info = answer.get("info")
    if not isinstance(info, dict):
        raise Problem(f"{place.name} answers no replica for {replica_id}")
    return info


def follow(calls: Api, place: Place, replica_id: str, *, until_ready: bool) -> AsyncGenerator[NamedEvent, None]:
    """A replica's events, the first of them a `snapshot`; as `events_of`."""
    params = {"until": "ready"} if until_ready else None
    return events_of(calls, place, path_of(replica_id), lambda: info_of(calls, place, replica_id), params)


async def events_of(
    calls: Api, place: Place, path: str, ask: Callable[[], Awaitable[JsonObject]], params: dict[str, str] | None = None
) -> AsyncGenerator[NamedEvent, None]:
    """Events of what is at `path`, for ever, as (name, data); ends after the stream's own `end`.

    Where there is no stream, what `ask` answers comes as a `snapshot` again and again.

    Raises:
        Problem: There is no such thing, or nobody answers for a minute.
    """
    away_since: float | None = None
    while True:
        try:
            async with aclosing(_stream(calls, place, f"{path}/events", params)) as events:
                async for name, data in events:
                    away_since = None
                    yield name, data
                    if name == "end":
                        return
        except Problem as problem:
            if problem.code in NO_STREAM:
                yield "snapshot", await ask()  # raises when there is no such thing
                away_since = None
            else:
                now = time.monotonic()
                away_since = now if away_since is None else away_since
                if now - away_since > PATIENCE_S:
                    raise
        await asyncio.sleep(POLL_S)


async def _stream(
    calls: Api, place: Place, path: str, params: dict[str, str] | None
) -> AsyncGenerator[NamedEvent, None]:
    parser = Events()
    async with calls.open(place, "GET", path, params=params, silence_s=SILENCE_S) as answer:
        if not answer.content_type.startswith("text/event-stream"):
            raise Problem(f"{place.name} has no event streams", code=Code.NOT_FOUND)
        async for chunk in answer.content.iter_any():
            try:
                events = list(parser.feed(chunk))
            except ValueError as error:
                raise Problem(f"{place.name}: {error}") from error
            for event in events:
                if (data := _data(event)) is not None:
                    yield event.name, data


def _data(event: ServerSentEvent) -> JsonObject | None:
    try:
        data = json.loads(event.data)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None
