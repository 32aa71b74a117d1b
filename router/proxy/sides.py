"""What the parts of a request's way may call of the part above them: base classes, so that imports run one way only.

    Downstream (a client's connection) → Exchange (a request) → UpstreamAttempt (a try) → Upstream (a replica's connection)

Each of them makes the next one and hears back from it through one of these. Classes and not protocols: mypyc calls their
methods directly.
"""

import asyncio
from typing import NamedTuple

from router.dispatch import Dispatch, Failure, Judgement
from router.model import Endpoint, Facts
from router.proxy.head import RequestHead, ResponseHead
from router.proxy.response_writer import ResponseWriter
from router.proxy.tracing import Trace
from router.proxy.translation import Translation
from router.purses import Charged
from router.silence import Kind


class ClientConnection:
    """A client's connection, for its request and for the worker."""

    __slots__ = ("peer", "peer_line")
    peer: str
    """The client's address."""
    peer_line: bytes
    """The same, as a header line for replicas."""

    @property
    def paused(self) -> bool:
        """True while the client cannot take more."""
        raise NotImplementedError

    @property
    def asking(self) -> bool:
        """True while a request arrives, or may still come."""
        raise NotImplementedError

    def sink(self) -> asyncio.Transport:
        """Where the answer is written."""
        raise NotImplementedError

    def exchange_done(self, *, keep_alive: bool) -> None:
        """The answer is written; go on with the next request, or close."""
        raise NotImplementedError

    def check(self, now: float) -> None:
        """Called by the sweep: end what has taken too long."""
        raise NotImplementedError

    def take_over(self) -> bytes:
        """From now on bytes go to the request as they come; returns those that came before."""
        raise NotImplementedError

    def put_back(self, data: bytes) -> None:
        """What came after the request's end: the next one's."""
        raise NotImplementedError

    def hold(self, *, paused: bool) -> None:
        """Stop reading while the replica cannot take more."""
        raise NotImplementedError

    def abort(self) -> None:
        """Reset the connection: the only honest end of an answer without framing."""
        raise NotImplementedError

    def leave(self) -> None:
        """Go to the worker that takes this one's place, if idle."""
        raise NotImplementedError

    def end_held(self) -> None:
        """End a request that waits for its model to start."""
        raise NotImplementedError

    def expel(self) -> None:
        """Close now, whatever is under way."""
        raise NotImplementedError


class ProxiedRequest:
    """One request of one client, for its attempts and for the worker."""

    head: RequestHead
    body: bytes
    sent_head: RequestHead
    """As the replica that is asked gets it."""
    sent_body: bytes
    facts: Facts
    dispatch: Dispatch
    caller: str
    """The API key's name, or the client's address."""
    peer_line: bytes
    """The client's address, as a header line for replicas."""
    request_id: bytes
    started: float
    """When the request was whole, in monotonic seconds."""
    # These keep their defaults in most requests: class attributes cost nothing per request.
    dequeued_at = 0.0
    queued_s = 0.0
    """How long it waited in lines, in all."""
    failed: tuple[Endpoint, ...] = ()
    """Who could not answer this request, for reasons that may be the request's."""
    trace: Trace | None = None
    key = ""
    """The name of the API key that let it in; empty where none did."""
    hides_usage = False
    """The router asked for its stream's usage, and the client did not."""
    takes_data = False
    """What else comes from the client is its own, and no further request."""
    rest_bytes = 0
    """Of its body, which go on to the replica after `sent_body`."""
    translation: Translation | None = None
    """Of a request of Anthropic's Messages API."""
    charged: Charged | None = None
    """What it takes of its key's limits; None for one without."""
    awaits_budget = False
    """It waits until there is as much."""

    @property
    def kind(self) -> Kind | None:
        """What kind of answer the engine is to write; None where another part of the server may answer for it."""
        operation = self.head.operation
        return (operation.name, self.facts.stream) if operation is not None and operation.by_engine else None

    @property
    def asked_at(self) -> float:
        """Since when the client waits for what the attempt is to answer, in monotonic seconds."""
        return self.started

    @property
    def takes_chunks(self) -> bool:
        """Whether whole chunks of a stream may pass with their framing: nobody reads them."""
        translated = self.translation is not None and self.translation.active
        return not self.sent_head.http10 and self.facts.choices == 1 and not translated and not self.hides_usage

    @property
    def may_wait(self) -> bool:
        """Whether its replica need not get it at once: it is a prompt, asked for the first time, and whole."""
        return False

    @property
    def urgency(self) -> int:
        """The less, the more urgent."""
        raise NotImplementedError

    def waited(self, since: float, now: float) -> None:
        """It was in its replica's line, and goes there now."""
        raise NotImplementedError

    def more_told(self) -> dict[str, object]:
        """Further fields of its line in the access log."""
        return {}

    def enter(self) -> bool:
        """Take of its key's limits what it needs; False while it has to wait for that."""
        raise NotImplementedError

    def refuse_unknown(self) -> None:
        """Tell the client that nobody knows what is left of its key's limits."""
        raise NotImplementedError

    @property
    def queued(self) -> bool:
        """True while it waits for a replica with room."""
        raise NotImplementedError

    def choose(self) -> None:
        """Ask a replica, wait for one with room, or answer that there is none."""
        raise NotImplementedError

    def check(self, now: float) -> None:
        """Called by the sweep: end what has taken too long."""
        raise NotImplementedError

    def forwarded_lines(self) -> bytes:
        """The client's header lines that go on to the replica."""
        raise NotImplementedError

    def accept(self, head: ResponseHead) -> ResponseWriter | None:
        """Where the replica's response goes; None to ask another replica instead."""
        raise NotImplementedError

    def ask_another(self, judgement: Judgement) -> None:
        """The attempt was dropped for a response that another replica may better."""
        raise NotImplementedError

    def attempt_failed(self, failure: Failure) -> None:
        """The attempt ended without a response."""
        raise NotImplementedError

    def finish(self, *, keep_alive: bool = False, notify: bool = True) -> None:
        """The request is over, one way or another."""
        raise NotImplementedError


class ClientDeadline(NamedTuple):
    """The next moment (of the worker's clock) at which a client's time has passed, whose field said so, and with how many seconds.

    `whole_within_s` is what it gives the whole answer, in seconds.
    """

    at: float
    field: str
    seconds: float
    whole_within_s: float


class ResponseListener:
    """An attempt, for the replica's connection."""

    def on_head(self, head: ResponseHead) -> None:
        """The response begins."""
        raise NotImplementedError

    def on_switch(self, _head: ResponseHead) -> bool:
        """A 101 came: True if it was asked for, and what follows are the bytes of another protocol."""
        return False

    def on_write_paused(self, *, paused: bool) -> None:
        """The replica cannot take more, or can again; a request is whole, and bounded, already."""

    def on_body(self, data: bytes, *, framed: bool) -> None:
        """Bytes of the response; `framed` when they are whole chunks, never the closing one."""
        raise NotImplementedError

    def on_end(self) -> None:
        """The response is complete, as far as its framing goes."""
        raise NotImplementedError

    def on_whole(self, head: ResponseHead, body: bytes) -> None:
        """The whole response at once."""
        raise NotImplementedError

    def on_stale(self) -> None:
        """An idle connection was closed as it was written to: no fault, and no attempt (docs/faults.md D9)."""
        raise NotImplementedError

    def on_failed(self, failure: Failure) -> None:
        """The connection failed before the response was complete."""
        raise NotImplementedError
