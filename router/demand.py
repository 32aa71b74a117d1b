"""What is asked of deployments' models, for the registry that starts them; and how they stand, for the workers (docs/adr/0013).

The registry hears of it each second, and at once when a worker begins to hold a request. Its answer is in force until the
next one: while it cannot be reached, requests for a cold model are still held, and told so.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog

from common.discovery.registry_client import (
    RegistrationRefused,
    RegistryClient,
    RegistryUnavailable,
    StaleIncarnation,
    UnknownService,
)
from common.wire.deployment import Demand, ModelDemand, ModelState
from router import feed
from router.counters import IN_FLIGHT, REQUESTS, SharedCounters
from router.model import Replica

log = structlog.get_logger(__name__)
TELL_S = 1.0
MODELS_MOST = 2000
"""As many as a registry takes; of more, those that most wait for."""
UNSUPPORTED_S = 30.0
"""A registry that has no such call, or refuses it, is asked again after so long."""


@dataclass(slots=True)
class ColdTotals:
    """What became of the requests that one deployment's cold model was asked for, since the router began."""

    served: int = 0
    waited_s: float = 0.0
    refused: int = 0


@dataclass(slots=True)
class _Counted:
    """What was last seen of one replica's counter."""

    model: str
    requests: int


class Deployments:
    """All deployments' models, as the master knows them.

    Args:
        replicas: The replicas as they are now.
        counters: The counters.
        waiting: Requests that wait in the workers' lines, by model.
        tell_workers: Gives every worker what changed.
    """

    def __init__(
        self,
        replicas: Callable[[], Iterable[Replica]],
        counters: SharedCounters,
        waiting: Callable[[], Mapping[str, int]],
        tell_workers: Callable[[feed.Standings], None],
    ) -> None:
        self._replicas = replicas
        self._counters = counters
        self.waiting = waiting
        self._tell_workers = tell_workers
        self.states: dict[str, ModelState] = {}
        """By model."""
        self.lost = False
        self.totals: dict[str, ColdTotals] = {}
        self._wanted = asyncio.Event()
        self._counted: dict[str, _Counted] = {}
        self._requests: dict[str, int] = {}

    def heard(self, before: Mapping[str, feed.ModelWaits], waits: Mapping[str, feed.ModelWaits]) -> None:
        """Take a worker's word; `before` is what it said the last time."""
        for model, one in waits.items():
            if model not in self.states:
                continue
            totals = self.totals.setdefault(model, ColdTotals())
            totals.served += one.served
            totals.waited_s += one.waited_s
            totals.refused += one.refused
            if one.waiting and (model not in before or not before[model].waiting):
                self._wanted.set()

    def demand(self) -> Demand:
        """What there is of each deployment's model now; those of which there is nothing are left out."""
        model_of = {state.deployment: state.model for state in self.states.values()}
        in_flight: dict[str, int] = {}
        counted = {}
        for replica in self._replicas() if model_of else ():
            model = model_of.get(replica.deployment or "")
            if model is None:
                continue
            in_flight[model] = in_flight.get(model, 0) + self._counters.total(replica.slot, IN_FLIGHT)
            requests = self._counters.total(replica.slot, REQUESTS)
            last = self._counted.get(replica.id)
            counted[replica.id] = _Counted(model, requests)
            # What it had before it was seen first is of this router, too; a row that was cleared begins again.
            new = requests if last is None or requests < last.requests else requests - last.requests
            self._requests[model] = self._requests.get(model, 0) + new
        self._counted = counted
        waiting = {model: count for model, count in self.waiting().items() if model in self.states}
        models = {model for model, count in in_flight.items() if count} | waiting.keys()
        models |= {model for model, count in self._requests.items() if count}
        busiest = sorted(
            models, key=lambda model: (waiting.get(model, 0), in_flight.get(model, 0), model), reverse=True
        )
        return Demand(
            models={
                model: ModelDemand(
                    in_flight=in_flight.get(model, 0),
                    waiting=waiting.get(model, 0),
                    requests=self._requests.get(model, 0),
                )
                for model in busiest[:MODELS_MOST]
            }
        )

    def take(self, states: Iterable[ModelState] | None) -> None:
        """Take the registry's answer; None: there is none, so that the last one stays in force."""
        lost = states is None
        changed: tuple[ModelState, ...] = ()
        gone: tuple[str, ...] = ()
        if states is not None:
            new = {state.model: state for state in states}
            changed = tuple(state for model, state in new.items() if self.states.get(model) != state)
            gone = tuple(self.states.keys() - new.keys())
            self.states = new
            for model in gone:
                self.totals.pop(model, None)
                self._requests.pop(model, None)
        if changed or gone or (lost != self.lost and self.states):
            self._tell_workers(feed.Standings(changed, gone, lost=lost))
        self.lost = lost

    def all(self) -> feed.Standings:
        """For a new worker."""
        return feed.Standings(tuple(self.states.values()), lost=self.lost)

    async def tell(self, client: RegistryClient, router: str) -> None:
        """Tell the registry what is asked for, and take its answers, for ever."""
        refused = False
        while True:
            self._wanted.clear()
            pause_s = TELL_S
            try:
                answer = await client.tell_demand(router, self.demand())
            except RegistryUnavailable:
                self.take(None)
            except (UnknownService, StaleIncarnation, RegistrationRefused) as error:
                self.take(None)
                pause_s = UNSUPPORTED_S
                if not (refused or isinstance(error, UnknownService)):
                    log.warning("demand.refused", reason=str(error))
                refused = True
            else:
                refused = False
                self.take(answer.models)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), pause_s)
