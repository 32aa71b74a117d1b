"""What all exchanges of a worker share: the table, the pools, the counters, the limits, and the sweep of deadlines.

Deadlines are instants checked by one sweep every quarter of a second: a timer per request would cost more than the
precision is worth.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from common.tasks import TaskScope
from common.wire.deployment import ModelState
from router.admission import Waiting
from router.candidates import choose_from
from router.cold import ColdModels
from router.counters import IN_FLIGHT, SharedCounters
from router.keys import Key, KeyRing
from router.ledger import Ledger
from router.model import ABLE, Endpoint, Facts, Table
from router.outlier import TOLD, Outliers, Reason
from router.owners import Owners
from router.policy.blocks import seed_of
from router.policy.choose import Chooser
from router.policy.usage import Usage
from router.proxy.budgets import Budgets
from router.proxy.connector import Connector
from router.proxy.head import RequestHead
from router.proxy.headers import CREDENTIALS, FORWARDED
from router.proxy.heads import Heads, request_heads
from router.proxy.limits import Limits
from router.proxy.needs import Needs
from router.proxy.sides import ClientConnection, ClientDeadline, ProxiedRequest
from router.proxy.tracing import Traces
from router.proxy.watch import StallWatch
from router.retry import RetryBudget
from router.serves import call_of
from router.streams.hedging import Hedges

log = structlog.get_logger(__name__)
SWEEP_S = 0.25
ASK_AGAIN_S: Final = 1.0
"""While requests wait for an adapter, the master is asked for it again: a babysitter may have had no room for it."""
HEARD_LIMIT: Final = 65536
"""Of model names that are remembered as seen."""
SEARCHES_AT_ONCE: Final = 16
"""Stored responses that a worker looks for at a time; each may ask every replica."""


def tag_of(endpoint: Endpoint) -> int:
    """What an endpoint is known by where a number must do."""
    return seed_of(endpoint.id.encode())


def _nobody_to_ask(adapter: str, endpoint: str) -> None:
    """A worker has its master."""


def _nobody_to_tell() -> None:
    """Likewise."""


@dataclass
class Engine:
    """The shared state of one worker's data plane; touched only from its event loop."""

    limits: Limits
    counters: SharedCounters
    chooser: Chooser
    control: Endpoint
    scope: TaskScope
    table: Table = field(default_factory=lambda: Table(0))
    outliers: Outliers = field(init=False)
    watch: StallWatch = field(init=False)
    exchanges: set[ProxiedRequest] = field(default_factory=set)
    deadlines: dict[ProxiedRequest, ClientDeadline] = field(default_factory=dict)
    """Of requests whose clients told one."""
    reckoned: dict[ProxiedRequest, float] = field(default_factory=dict)
    """What requests under way are taken to cost (`shares.py`), where replicas have not room for everyone."""
    clients: set[ClientConnection] = field(default_factory=set)
    body_bytes: int = 0
    retries: RetryBudget = field(default_factory=RetryBudget)
    draining: bool = False
    """Answers say `Connection: close`."""
    give: Callable[[int], bool] | None = None
    """Gives a client's socket to the worker that takes this one's place, while that takes it."""
    workers: int = 1
    """Of this router."""
    needs: Needs = field(init=False)
    connector: Connector = field(init=False)
    keys: KeyRing = field(default_factory=KeyRing)
    budgets: Budgets = field(init=False)
    heads: Heads[RequestHead] = field(init=False)
    now: Callable[[], float] = time.monotonic
    """Monotonic seconds, the same clock in every process of this machine."""
    log_lines: list[dict[str, object]] = field(default_factory=list)
    traces: Traces | None = None
    waiting: Waiting[ProxiedRequest] = field(init=False)
    without_messages: set[str] = field(default_factory=set)
    """Ids of replicas that answered a request for `/v1/messages` as one answers to a path that does not exist."""
    owners: Owners = field(init=False)
    by_tag: dict[int, Endpoint] = field(default_factory=dict)
    """Endpoints by the number that they have in `owners`."""
    searches: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SEARCHES_AT_ONCE))
    ask_for_adapter: Callable[[str, str], None] = field(default=_nobody_to_ask)
    """Has the master get an adapter loaded, at an endpoint by its id."""
    cold: ColdModels = field(default_factory=ColdModels)
    """Models of deployments; asked only for a request that finds nobody."""
    tell_demand: Callable[[], None] = field(default=_nobody_to_tell)
    """Has the master hear now, rather than within a second, that somebody waits for a cold model."""
    hedges: Hedges = field(default_factory=Hedges)
    ledger: Ledger | None = None
    """Where tokens are counted by key; None where nobody asks for that: no registry is followed, and there are no keys."""
    leaving: frozenset[str] = frozenset()
    """Ids of replicas whose streams are to go on elsewhere."""
    _asked_for: dict[str, float] = field(default_factory=dict)
    """Adapters that requests wait for, and when the master was asked last."""
    _heard: set[str] = field(default_factory=set)
    """Models that somebody listed since the worker began."""

    def __post_init__(self) -> None:
        self.waiting = Waiting(self.limits.queue_limit)
        self.owners = Owners(self.counters)
        self.outliers = Outliers(self._set_aside)
        self.watch = StallWatch(self.counters, self.chooser, self.outliers, self.workers)
        self.connector = Connector(self.limits, self.scope, self.control, self.now)
        self.budgets = Budgets(self.now)
        self.set_keys(())

    def set_keys(self, keys: tuple[Key, ...], *, required: bool = False) -> None:
        """Take the API keys; `required`: one is needed, though there be none.

        Clients' own credentials go on to replicas only where none is needed (docs/contract.md 2).
        """
        self.keys = KeyRing(keys, time.time)
        self.budgets.set_keys(keys)
        required = required or bool(keys)
        credentials = frozenset() if required else CREDENTIALS
        self.needs = Needs(self.table, self.chooser, self.limits, keys=required)
        allowed = FORWARDED | credentials | {name.lower().encode() for name in self.limits.extra_headers}
        self.heads = request_heads(
            allowed, self.limits.strip_prefixes, self.limits.extra_paths, self.limits.cors_origins
        )

    def set_table(self, table: Table) -> None:
        """Swap the table; connections and ejections of endpoints that are gone are dropped."""
        self.table = table
        if len(self._heard) > HEARD_LIMIT:
            self._heard.clear()
        self._heard.update(table.by_model)
        self._heard.update(table.loadable)
        self.chooser.set_table(table, self.now())
        self.needs = Needs(table, self.chooser, self.limits, keys=self.needs.key)
        ids = {endpoint.id for endpoint in table.endpoints}
        self.outliers.forget_all_but(ids)
        self.without_messages &= ids
        self.hedges.forget_all_but(ids)
        self.leaving = frozenset(endpoint.id for endpoint in table.endpoints if endpoint.hands_over)
        self.by_tag = {tag_of(endpoint): endpoint for endpoint in table.endpoints}
        self.watch.set_table(table)
        self.connector.set_table(table)
        if len(self.waiting) and (self._asked_for or self.cold.states):
            for model in self.waiting.models():
                if model in self.cold.states and model not in self.cold.held and not self._may_be_asked(model):
                    self._choose_again(model)  # they wait for room at replicas that are gone
            self.serve_waiting()

    def set_standings(self, changed: Iterable[ModelState], gone: Iterable[str], *, lost: bool) -> None:
        """Take how deployments stand; whom that leaves without hope is told."""
        self.cold.take(changed, gone, lost=lost)
        if self.cold.held:
            self.serve_waiting()

    def peers(self, model: str | None) -> Sequence[Endpoint]:
        """Everybody who lists `model`; everybody, for a request that names none."""
        return self.table.endpoints if model is None else self.table.by_model.get(model, ())

    def peers_for(self, model: str | None, path: bytes) -> Sequence[Endpoint]:
        """`peers`; for a request that names no model without those that are known to answer other calls only."""
        if model is not None or not self.needs.call:
            return self.peers(model)
        call = call_of(path.decode("latin-1"))
        also = "/chat/completions" if call == "/messages" else call  # which it can be translated to
        return [one for one in self.table.endpoints if one.serves is None or call in one.serves or also in one.serves]

    def has_messages(self, endpoint: Endpoint, model: str | None) -> bool | None:
        """Whether a message goes to `endpoint` as it is: by the model's setting, else by what is known; None where nothing is."""
        wanted = self.chooser.rules.find(model).messages if model is not None else None
        return endpoint.messages if wanted is None else wanted == "native"

    def translates(self, endpoint: Endpoint, model: str | None) -> bool:
        """True when a message for `endpoint` is to become a chat; where nothing is known, by what was seen."""
        has = self.has_messages(endpoint, model)
        return endpoint.id in self.without_messages if has is None else not has

    def may_come(self, model: str) -> bool:
        """True when `model` was there, is named in the settings, or when the router has heard of no model at all yet."""
        return not self._heard or model in self._heard or self.chooser.rules.names(model)

    def is_ready(self, model: str) -> bool:
        """True when somebody who lists `model` may be asked without being a last resort, or may load or start it."""
        return model in self.table.loadable or self._is_at_hand(model) or self.cold.can_start(model)

    def _is_at_hand(self, model: str) -> bool:
        choice = choose_from(self.peers(model), (), self.outliers, self.now())
        return bool(choice.endpoints) and not choice.panic

    def lacks_adapter(self, model: str) -> bool:
        """True when `model` is an adapter that nobody has who is well, and that somebody may load."""
        return model in self.table.loadable and not self._is_at_hand(model)

    def want_adapter(self, model: str, facts: Facts) -> None:
        """Have an adapter loaded that `lacks_adapter`, where the usual rules would send this request."""
        now = self.now()
        if model in self._asked_for and now - self._asked_for[model] < ASK_AGAIN_S:
            return
        self._asked_for[model] = now
        able = choose_from(self.table.loadable[model], (), self.outliers, now).endpoints
        self.ask_for_adapter(model, self.chooser.pick(self.with_room(able) or able, facts, now).endpoint.id)

    def candidates(self, peers: Sequence[Endpoint], model: str | None, tried: Collection[str]) -> Sequence[Endpoint]:
        """Who may be asked now; the common case is looked up, not computed."""
        if not tried and self.outliers.quiet and (model is not None or not self.needs.call):
            fresh = self.table.fresh.get(model)
            if fresh:
                return fresh
        endpoints = choose_from(peers, tried, self.outliers, self.now()).endpoints
        if model is None and self.needs.call:
            return [one for one in endpoints if one.serves is not None] or endpoints
        return endpoints

    def with_room(self, candidates: Sequence[Endpoint]) -> Sequence[Endpoint]:
        """Those who may get one more request."""
        return [endpoint for endpoint in candidates if self.has_room(endpoint)] if self.needs.room else candidates

    def has_room(self, endpoint: Endpoint) -> bool:
        """True when `endpoint` may get one more request, over all workers."""
        return not endpoint.limit or self.counters.total(endpoint.slot, IN_FLIGHT) < endpoint.limit

    def has_left(self, endpoint: Endpoint) -> bool:
        """True when `endpoint` is to get nothing new now: it is gone, leaving, or set aside."""
        current = self.by_tag.get(tag_of(endpoint))
        return current is None or current.eligibility not in ABLE or not self.outliers.admits(current, self.now())

    def suspects(self, endpoint: Endpoint, caller: str) -> bool:
        """True when others than `caller` got errors there too, or the master has something against `endpoint` by now."""
        return self.outliers.suspects(endpoint, caller) or self.watch.has_changed(endpoint)

    async def sweep(self) -> None:
        """Enforce every deadline, for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self.now()
            self.watch.silence.begin()
            for exchange in list(self.exchanges):
                exchange.check(now)
            self.watch.slow = self.hedges.passed_over(now)
            self.watch.judge(now)
            for client in list(self.clients):
                client.check(now)
            self.connector.prune(now)
            self.adopt_ejections(now)
            self.chooser.fleet.settle(now)
            self.budgets.sweep(now)
            self.serve_waiting()  # room may have come from another worker
            self.tell()

    def tell(self) -> None:
        """Write what was counted and logged since the last time."""
        self.counters.flush()
        lines, self.log_lines = self.log_lines, []
        for line in lines:
            log.info("request", **line)

    def adopt_ejections(self, now: float) -> None:
        """Learn from the counters whom other workers set aside, and whom they took back."""
        for endpoint in self.table.endpoints:
            until = self.counters.ejected_until_s(endpoint.slot)
            if until > now:
                why = self.counters.ejected_why(endpoint.slot)
                if why:  # none when the master forgave, or cleared the row, since the line before
                    self.outliers.adopt(endpoint, until, Reason(why))
            elif not self.outliers.quiet:
                self.outliers.taken_back(endpoint, until)

    def _set_aside(self, endpoint: Endpoint, until: float, why: Reason) -> None:
        """An ejection begins, or ends early."""
        self.counters.eject(endpoint.slot, until, why)
        for_s = round(until - self.now(), 1)
        if for_s > 0:
            log.warning("replica.set_aside", replica=endpoint.name, reason=TOLD[why], for_s=for_s)
        else:
            log.info("replica.taken_back", replica=endpoint.name)

    def serve_waiting(self) -> None:
        """Let those go who wait for room that is there now."""
        for model in self.waiting.models():
            if model in self._asked_for and self._waits_for_adapter(model):
                continue
            if model in self.cold.held and self._waits_for_start(model):
                continue
            while any(self.has_room(endpoint) for endpoint in self.peers(model or None)):
                exchange = self.waiting.next(model, self.now())
                if exchange is None:
                    break
                exchange.choose()
                if exchange.queued:
                    break  # the room is not for it: its candidates are others
        if self._asked_for:
            waiting = self.waiting.models()
            self._asked_for = {model: at for model, at in self._asked_for.items() if model in waiting}
        if self.cold.held:
            self.cold.held.intersection_update(self.waiting.models())

    def _waits_for_start(self, model: str) -> bool:
        """True while a deployment is still to start; who waits for one that will not is told."""
        if self._may_be_asked(model):
            self.cold.held.discard(model)
            return False
        if not self.cold.can_start(model):
            self.cold.held.discard(model)
            self._choose_again(model)
        return True

    def _may_be_asked(self, model: str) -> bool:
        return bool(choose_from(self.peers(model), (), self.outliers, self.now()).endpoints)

    def _choose_again(self, model: str) -> None:
        """Have everybody in a line look again what there is."""
        for _ in range(self.waiting.size(model)):
            exchange = self.waiting.next(model, self.now())
            if exchange is not None:
                exchange.choose()

    def _waits_for_adapter(self, model: str) -> bool:
        """True while an adapter is still to come: it is asked for again; who waits for one that cannot be had is told."""
        if self.lacks_adapter(model):
            self.want_adapter(model, Facts(model=model))
            return True
        while not self.peers(model) and (exchange := self.waiting.next(model, self.now())) is not None:
            exchange.choose()
        return False

    def begin_share(self, request: ProxiedRequest) -> None:
        """A request goes to a replica that has not room for everyone: it counts for whose turn is next, once."""
        if request in self.reckoned:
            return  # it goes again, as another call of the same replica
        shares = self.waiting.shares(request.facts.model or "")
        reckoned = self.reckoned[request] = shares.expected(request.caller, request.facts.prompt_bytes)
        shares.begin(request.caller, self.keys.weights.get(request.caller, 1.0), reckoned)

    def end_share(self, request: ProxiedRequest, usage: Usage | None, pieces: int) -> None:
        """It is over: by its usage, or by the pieces of its stream, is known better what it cost."""
        reckoned = self.reckoned.pop(request, None)
        if reckoned is not None and (usage is not None or pieces):
            shares, facts = self.waiting.shares(request.facts.model or ""), request.facts
            shares.end(request.caller, reckoned, usage, pieces, facts.prompt_bytes)

    def begin_attempt(self, endpoint: Endpoint) -> None:
        """A request goes to `endpoint`: one more in flight."""
        self.counters.add(endpoint.slot, IN_FLIGHT)
        self.outliers.begin(endpoint)

    def room_made(self) -> None:
        """An attempt at a bounded endpoint is over: somebody may have waited for that."""
        if len(self.waiting):
            asyncio.get_running_loop().call_soon(self.serve_waiting)

    def busy(self) -> bool:
        """True while a request is under way, arrives, or may still come."""
        return bool(self.exchanges) or any(client.asking for client in self.clients)

    def drain(self, give: Callable[[int], bool] | None = None) -> None:
        """Finish what is under way, and give the clients' connections away as they become idle, if somebody takes them.

        Else each is asked once more, unless it has been idle for `limits.last_chance_s` before that: told that it closes, a
        client does not write into a connection that is just being closed.
        """
        self.give = give
        self.draining = give is None
        self.leave()

    def leave(self) -> None:
        """Give away who is idle."""
        if self.give is not None:
            for client in list(self.clients):
                client.leave()

    def end_held(self) -> None:
        """Nobody will tell of a replica that starts: those that wait for one may ask again elsewhere."""
        for client in list(self.clients):
            client.end_held()

    def abort_all(self) -> None:
        """The drain's time is over: end every client."""
        for client in list(self.clients):
            client.expel()
