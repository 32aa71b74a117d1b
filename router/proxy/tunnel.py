"""A WebSocket between a client and a replica: a request until the replica's 101, bytes both ways from then on.

Until the 101 it is checked, queued, retried and answered as any request is. After it, it stays one in flight at its replica
until either side is gone. Each side is read only as fast as the other one takes it. What the router itself ends gets a
Close, in front of which no frame is cut:

    1001  the session was idle for too long, or reached its limit
    1011  the replica was lost, or does not take what it is sent
    1012  the router stops, or the replica is leaving: connect again
"""

from math import inf
from typing import Final

from router import dispatch, urlencoded
from router.counters import BYTES_IN, BYTES_OUT, FIRST_BYTE
from router.dispatch import Failure, Judgement
from router.facts import BadBody, checked_model, forwarded_affinity
from router.keys import Key, Refusal
from router.model import Endpoint, Facts
from router.policy.placed import PlacedRequest
from router.proxy import checks, cors
from router.proxy.attempt import AttemptPhase, UpstreamAttempt
from router.proxy.engine import Engine
from router.proxy.exchange import Exchange, RequestPhase
from router.proxy.head import RequestHead, ResponseHead
from router.proxy.sides import ClientConnection
from router.proxy.websocket import (
    UPGRADE_LINES,
    BadHandshake,
    Frames,
    Handshake,
    close_frame,
    is_accepted,
    read_handshake,
)

SWITCHING: Final = 101
GOING_AWAY, REPLICA_LOST, CONNECT_AGAIN = 1001, 1011, 1012
"""Close codes (iana.org/assignments/websocket); uvicorn, too, says 1012 where it stops."""
GOODBYE_S: Final = 1.0
"""How long a client may take to answer our Close."""
CLOSING_S: Final = 10.0
"""How long the two sides may take to close, from the first one's Close on."""
LEAVING_S = 20.0
"""How long a session may last at a replica that drains: a babysitter waits for 30 s before it stops the server."""


class WebSocketExchange(Exchange):
    """One WebSocket of one client; for the arguments see `Exchange`."""

    _handshake: Handshake
    _tunnel: "TunnelAttempt | None" = None
    _goodbye: bytes | None = None
    """Our own Close, from the moment that it is due."""
    _said_goodbye = False
    _judgement = dispatch.CLIENT_GONE
    """What the session's end amounts to, where it is our own doing."""
    _over_at = inf
    """When it ends, whoever has not closed by then."""
    _leave_at = inf
    _replica_paused_at = inf
    _last_byte_at = 0.0
    _received = 0
    _sent = 0
    _counted_in = 0
    _counted_out = 0

    def __init__(self, engine: Engine, client: ClientConnection, head: RequestHead, body: bytes) -> None:
        super().__init__(engine, client, head.copied(), body)
        self.head.keep_alive = False  # whatever comes after a refused handshake is nobody's request
        self._from_client = Frames()
        self._from_replica = Frames()
        self._offered: tuple[bytes, ...] = ()
        """The subprotocols that the replica was told of."""

    # -- until the 101 -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the handshake in, or answer why not."""
        if self.head.preflight is not None:
            super().start()
            return
        self._engine.exchanges.add(self)
        self._engine.body_bytes += len(self.body)
        try:
            self._handshake = read_handshake(self.head)
            key = self._let_in()
            if key is not None and not self.charge(key):
                return
        except BadHandshake as bad:
            self.fail(dispatch.LocalAnswer(bad.status, "bad_handshake", str(bad), *bad.headers))
        except checks.Rejected as rejected:
            self.fail(rejected.answer)
        except BadBody as error:
            self.fail(dispatch.LocalAnswer(400, "invalid_query", str(error)))
        else:
            self.admitted()

    def admitted(self) -> None:
        """Its key covers it: see what the model's name leads to, and ask."""
        engine, head, model = self._engine, self.head, self.facts.model
        if model is not None and engine.chooser.rules.rules:
            target = engine.chooser.resolve(model, None, engine.is_ready)
            if target != model:
                head.query = urlencoded.with_model(head.query, target)
                self.facts = self._facts(target)
        self.choose()

    def _let_in(self) -> Key | None:
        """Page, key, and model; returns the key that it showed, if one is needed.

        Raises:
            Rejected: One of them is not right.
            BadBody: The query names no model that could be one.
        """
        engine, head = self._engine, self.head
        if not cors.may_open(engine.limits.cors_origins, head.host, head.fields):
            raise checks.Rejected(403, "origin_not_allowed", "pages of this origin may not connect: see cors_origins")
        key = self._shown_key() if engine.needs.key else None
        if len(head.query_models) > 1:
            raise BadBody("'model' appears twice in the query")
        model = checked_model(*head.query_models) if head.query_models else None
        if model is None and engine.table.endpoints and not engine.peers_for(None, head.path):
            raise BadBody("say which model: ?model=NAME (no replica's record says that it serves this path by itself)")
        self.facts = self._facts(model)
        return key

    def _shown_key(self) -> Key:
        head, keys = self.head, self._engine.keys
        shown = head.api_key or (self._handshake.shown_key if head.authorization is None else None)
        key = keys.find(head.authorization, shown)
        if key is None:
            raise checks.reject(Refusal.UNKNOWN)
        return key

    def _facts(self, model: str | None) -> Facts:
        head = self.head
        affinity = forwarded_affinity(head.forwarded_for, head.user_agent)
        needs = checks.policy_needs(self._engine, head)
        if needs is None:
            return Facts(model=model, stream=True, affinity=affinity)
        session = f"id:{needs.session}" if needs.session is not None else affinity
        return Facts(
            model=model,
            stream=True,
            affinity=affinity,
            session=session if needs.sessions else None,
            policy=needs.policy,
        )

    def _new_attempt(self, endpoint: Endpoint, placement: PlacedRequest | None) -> UpstreamAttempt:
        has_own_key = endpoint.authorization is not None
        keeps_key = not (self._engine.needs.key or has_own_key)
        self._offered = self._handshake.protocols if keeps_key else self._handshake.without_key
        return TunnelAttempt(self._engine, self, endpoint, placement)

    def forwarded_lines(self) -> bytes:
        """The client's header lines that go on to the replica, and its handshake."""
        return super().forwarded_lines() + self._handshake.lines(self._offered)

    def switched(self, head: ResponseHead, tunnel: "TunnelAttempt") -> bool:
        """The replica's 101 came; False if it proves nothing."""
        if not is_accepted(head, self._handshake.key, self._offered):
            return False
        now = self._engine.now()
        self._status = SWITCHING
        self.takes_data = True  # a connection of another protocol, whose bytes pass both ways
        self._tunnel = tunnel
        self._last_byte_at = now
        self._client.sink().write(head.lines + self._own_lines() + UPGRADE_LINES + b"\r\n")
        early = self._client.take_over()
        if early:
            self.client_data(early)
        return True

    # -- bytes -------------------------------------------------------------------------------------------------------

    def client_data(self, data: bytes) -> None:
        """Bytes from the client."""
        self._last_byte_at = self._engine.now()
        self._received += len(data)
        self._from_client.feed(data)
        if self._tunnel is not None:
            self._tunnel.write(data)
        elif self._from_client.closed:
            self._end(self._judgement)

    def replica_data(self, data: bytes) -> None:
        """Bytes from the replica; none after our own Close."""
        if self._said_goodbye:
            return
        self._last_byte_at = self._engine.now()
        end = self._from_replica.feed(data)
        if self._goodbye is not None and end >= 0 and not self._from_replica.closed:
            self._pass_on(data[:end])
            self._say_goodbye()
        else:
            self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        self._sent += len(data)
        self._client.sink().write(data)

    def replica_paused(self, *, paused: bool) -> None:
        """The replica cannot take more, or can again."""
        self._replica_paused_at = self._engine.now() if paused else inf
        self._client.hold(paused=paused)

    # -- its end -----------------------------------------------------------------------------------------------------

    def replica_gone(self) -> None:
        """The replica closed its connection."""
        if self._goodbye is not None or self._is_closing or not self._from_replica.between:
            lost = self._goodbye is None and not self._is_closing
            self._end(dispatch.TRUNCATED if lost else self._own_end())
        else:
            self._let_go(dispatch.TRUNCATED, "the replica closed the connection")

    def client_gone(self) -> None:
        """The client closed: so is the connection to the replica, at once."""
        if not self.takes_data:
            super().client_gone()
            return
        self._drop(self._own_end())
        self.finish(notify=False)

    def expire(self) -> None:
        """The router stops and the drain's time is over."""
        if self.takes_data:
            self._part(CONNECT_AGAIN, "the router is stopping: connect again", dispatch.STOPPING)
        else:
            super().expire()

    def check(self, now: float) -> None:
        """Called by the sweep: end what has lasted, or stood still, for too long."""
        if not self.takes_data:
            super().check(now)
            return
        if self.phase is RequestPhase.DONE:
            return
        self._count_bytes()
        if now > self._over_at:
            self._end(self._own_end())
        elif self._goodbye is not None:
            return
        elif self._is_closing:
            self._over_at = min(self._over_at, now + CLOSING_S)
        else:
            self._check_limits(now)

    def _check_limits(self, now: float) -> None:
        engine, limits, is_well = self._engine, self._engine.limits, dispatch.judge(SWITCHING)
        leaving = self._tunnel is not None and engine.watch.drains(self._tunnel.endpoint)
        self._leave_at = min(self._leave_at, now + LEAVING_S) if leaving else inf
        if now > self.started + limits.websocket_timeout_s:
            self._part(GOING_AWAY, f"a session may last {limits.websocket_timeout_s:g} s", is_well)
        elif now > self._last_byte_at + limits.idle_timeout_s:
            self._part(GOING_AWAY, f"no byte came for {limits.idle_timeout_s:g} s", is_well)
        elif now > self._replica_paused_at + limits.write_stall_s:
            self._let_go(dispatch.FELL_SILENT, "the replica does not take what it is sent")
        elif now > self._leave_at:
            self._part(CONNECT_AGAIN, "the replica is leaving: connect again", is_well)

    @property
    def _is_closing(self) -> bool:
        """One side has said Close."""
        return self._from_client.closed or self._from_replica.closed

    def _own_end(self) -> Judgement:
        """What it amounts to that the session ends now, and not by the replica."""
        if self._goodbye is None and self._is_closing:
            return dispatch.judge(SWITCHING)
        return self._judgement

    def _part(self, code: int, reason: str, judgement: Judgement) -> None:
        """End the session by a Close of our own: now, or where the replica's frame that is under way ends."""
        if self._goodbye is not None:
            return
        self._goodbye = close_frame(code, reason)
        self._judgement = judgement
        self._over_at = self._engine.now() + GOODBYE_S
        if self._from_replica.between and not self._from_replica.closed:
            self._say_goodbye()

    def _let_go(self, judgement: Judgement, reason: str) -> None:
        """Drop the replica; what the client still sends is read and dropped until it knows, else it could not read why."""
        self._count_bytes()
        self._drop(judgement)
        self._tunnel = None
        self._client.hold(paused=False)
        self._part(REPLICA_LOST, reason, judgement)

    def _say_goodbye(self) -> None:
        """The client's answer to it goes on to the replica, which so learns of the end."""
        assert self._goodbye is not None  # noqa: S101 - it is due
        self._said_goodbye = True
        self._pass_on(self._goodbye)

    def _end(self, judgement: Judgement) -> None:
        self._drop(judgement)
        self.finish()

    def _count_bytes(self) -> None:
        """While it lasts: a session of an hour is no burst at its end."""
        if self._tunnel is not None:
            tally = self._engine.counters.tally(self._tunnel.endpoint.slot)
            tally.add(BYTES_IN, self._received - self._counted_in)
            tally.add(BYTES_OUT, self._sent - self._counted_out)
            self._counted_in, self._counted_out = self._received, self._sent

    def _bytes_passed(self) -> tuple[int, int]:
        return (self._received, self._sent) if self.takes_data else super()._bytes_passed()

    def finish(self, *, keep_alive: bool = False, notify: bool = True) -> None:
        """The session is over, one way or another."""
        self._count_bytes()
        super().finish(keep_alive=keep_alive, notify=notify)
        self._tunnel = None  # ends the reference cycle here


class TunnelAttempt(UpstreamAttempt):
    """One try at one replica, which may become a tunnel; for the arguments see `UpstreamAttempt`."""

    def __init__(
        self, engine: Engine, session: WebSocketExchange, endpoint: Endpoint, placement: PlacedRequest | None
    ) -> None:
        super().__init__(engine, session, endpoint, placement)
        self._session = session

    def on_switch(self, head: ResponseHead) -> bool:
        """The replica's 101: True if it is a right one."""
        engine = self._engine
        if not self._session.switched(head, self):
            return False
        self.phase = AttemptPhase.RELAYING
        self.first_byte_at = self.last_byte_at = now = engine.now()
        engine.connector.note_reached(self.endpoint)
        engine.counters.tally(self.endpoint.slot).observe(FIRST_BYTE, now - self._session.started)
        if self._placement is not None:
            self._placement.is_no_prompt()
        return True

    def write(self, data: bytes) -> None:
        """Bytes for the replica."""
        if self._upstream is not None:
            self._upstream.write(data)

    def on_write_paused(self, *, paused: bool) -> None:
        """The replica cannot take more, or can again."""
        if self._session.takes_data:
            self._session.replica_paused(paused=paused)

    def on_body(self, data: bytes, *, framed: bool) -> None:
        """Bytes from the replica."""
        if self._session.takes_data:
            self._session.replica_data(data)
        else:
            super().on_body(data, framed=framed)

    def on_end(self) -> None:
        """The replica closed its connection, or its refusal is whole."""
        if self._session.takes_data:
            self._upstream = None
            self._session.replica_gone()
        else:
            super().on_end()

    def on_failed(self, failure: Failure) -> None:
        """The connection broke."""
        if self._session.takes_data:
            self._upstream = None
            self._session.replica_gone()
        else:
            super().on_failed(failure)
