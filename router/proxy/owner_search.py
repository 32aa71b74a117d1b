"""Who has a stored response, where no worker of this router knows: the replicas that may have it are asked, all at once.

`GET /v1/responses/{id}` does no harm, and of its answer only the status is read. It happens when another router passed the
response on, or this one was restarted since.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from router.dispatch import Failure
from router.keys import Key
from router.model import Eligibility, Endpoint
from router.proxy.engine import Engine
from router.proxy.head import RequestHead, ResponseHead
from router.proxy.paths import RESPONSES, stored_response
from router.proxy.sides import ProxiedRequest, ResponseListener

SEARCH_S = 5.0
"""For all replicas; who has not answered by then may have it all the same."""
AT_ONCE: Final = 32
"""Replicas that are asked at the same time for one response."""
_FOUND: Final = 200


def may_have(engine: Engine, model: str | None, key: Key | None) -> Sequence[Endpoint]:
    """Who may have made a response that `key` may see: for `model`, or whichever of its models."""
    rules = engine.chooser.rules
    if model is not None:
        asked = [model]
    elif key is None or not key.models:
        return engine.peers_for(None, RESPONSES)
    else:
        known = {*engine.table.by_model, *rules.rules, *key.models}
        asked = [name for name in known if engine.keys.covers(key, name)]
    names = {name for one in asked for name in rules.reach(one)}
    return [endpoint for endpoint in engine.table.endpoints if not names.isdisjoint(endpoint.models)]


async def search(
    engine: Engine, request: ProxiedRequest, response: str, endpoints: Sequence[Endpoint]
) -> Endpoint | None:
    """The one of `endpoints` that has `response`; None when each of them says no, or cannot be reached.

    Raises:
        TimeoutError: Some have not answered in time.
    """
    question = _Question(request, response)
    last = [endpoint for endpoint in endpoints if endpoint.eligibility is Eligibility.DOWN]
    waiting = [endpoint for endpoint in endpoints if endpoint.eligibility is not Eligibility.DOWN] + last
    asked: list[asyncio.Task[Endpoint | None]] = []
    try:
        async with asyncio.timeout(SEARCH_S), engine.searches:
            while waiting:
                now, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
                asked = [engine.scope.spawn("ask-for-response", _ask(engine, question, one)) for one in now]
                for answer in asyncio.as_completed(asked):
                    owner = await answer
                    if owner is not None:
                        return owner
    finally:
        for task in asked:
            task.cancel()
    return None


async def _ask(engine: Engine, question: "_Question", endpoint: Endpoint) -> Endpoint | None:
    """`endpoint` if it has the response."""
    try:
        connection = await engine.connector.connect(endpoint)
    except (OSError, TimeoutError, UnicodeError):
        return None  # what it made is gone with it, or cannot be had now
    heard = _Heard()
    try:
        asked = engine.connector.pool(endpoint).request(question, endpoint.api_prefix)
        connection.send(heard, asked, b"", to_head_request=False, raw_chunks=True)
        return endpoint if await heard.status == _FOUND else None
    finally:
        if not heard.is_whole:
            connection.abort()


class _Question(ProxiedRequest):
    """The same client's `GET` of a response."""

    def __init__(self, request: ProxiedRequest, response: str) -> None:
        head: RequestHead = request.head.copied()
        head.method, head.query = b"GET", b""
        head.path = b"/v1%b/%b" % (RESPONSES, response.encode())
        head.operation = stored_response(head.path) or head.operation
        self.sent_head = head
        self.sent_body = b""
        self.peer_line = request.peer_line
        self.request_id = request.request_id
        self._lines = request.head.forwarded

    def forwarded_lines(self) -> bytes:
        return self._lines


class _Heard(ResponseListener):
    """The status of one answer; 0 for none."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.is_whole = False
        """The connection is free, or gone."""

    def on_head(self, head: ResponseHead) -> None:
        self._tell(head.status)

    def on_body(self, data: bytes, *, framed: bool) -> None:
        """Nobody reads it."""

    def on_end(self) -> None:
        self.is_whole = True

    def on_whole(self, head: ResponseHead, body: bytes) -> None:
        del body
        self.is_whole = True
        self._tell(head.status)

    def on_stale(self) -> None:
        self._end()

    def on_failed(self, failure: Failure) -> None:
        del failure
        self._end()

    def _end(self) -> None:
        self.is_whole = True
        self._tell(0)

    def _tell(self, status: int) -> None:
        if not self.status.done():
            self.status.set_result(status)
