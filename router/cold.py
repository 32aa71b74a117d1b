"""PURE. Models of deployments as a worker knows them: how they stand, which ones requests are held for, what those are told.

A request that finds no replica of such a model waits in its line until there is one (docs/adr/0013). Requests for models
that have a replica never come by here.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import UnsetType

from common.wire.deployment import DeploymentPhase, ModelState
from common.wire.words import WAKING
from router.admission import RETRY_AFTER_LIMIT_S

RETRY_AFTER_S: Final = 5
"""Where nothing is known of earlier starts."""
_VERBS = {
    DeploymentPhase.QUEUED: "queued",
    DeploymentPhase.ASLEEP: "waking",
    DeploymentPhase.FAILING: "failed, to be tried again",
}
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")
_STAGE_LIMIT: Final = 40


class ColdCounts:
    """What one worker saw of one deployment's cold model since it last told of it."""

    def __init__(self) -> None:
        self.served = 0
        self.waited_s = 0.0
        self.refused = 0
        self.wanted = 0
        """1 when somebody asked who has no time to wait, for whom it is to start all the same."""


class ColdModels:
    """All deployments' models, by name; `lost`: the registry that would start them does not answer."""

    def __init__(self) -> None:
        self.states: dict[str, ModelState] = {}
        self.lost = False
        self.held: set[str] = set()
        """Models that requests wait for, and that nobody serves."""
        self.counts: dict[str, ColdCounts] = {}

    def take(self, changed: Iterable[ModelState], gone: Iterable[str], *, lost: bool) -> None:
        """How they stand by the registry's latest word."""
        self.lost = lost
        for state in changed:
            self.states[state.model] = state
        for model in gone:
            self.states.pop(model, None)
            self.counts.pop(model, None)

    def can_start(self, model: str) -> bool:
        """True when it makes sense to wait for `model`."""
        state = self.states.get(model)
        return state is not None and is_startable(state)

    def waited(self, model: str, seconds: float) -> None:
        """A held request goes on."""
        counts = self._counts(model)
        counts.served += 1
        counts.waited_s += seconds

    def refused(self, model: str) -> None:
        """A request was told that its model is not there yet."""
        self._counts(model).refused += 1

    def turned_away(self, model: str) -> None:
        """A request was told that its model comes too late for it."""
        self.refused(model)
        self._counts(model).wanted = 1

    def _counts(self, model: str) -> ColdCounts:
        counts = self.counts.get(model)
        if counts is None:
            counts = self.counts[model] = ColdCounts()
        return counts

    def retry_after_s(self, model: str) -> int:
        """Whole seconds after which it makes sense to ask again."""
        state = self.states.get(model)
        return retry_after_s(state) if state is not None and not self.lost else RETRY_AFTER_S

    def eta_s(self, model: str) -> float | None:
        """How long its start still takes; None where that is not known."""
        state = self.states.get(model)
        return None if state is None or self.lost or isinstance(state.eta_s, UnsetType) else state.eta_s

    def words(self, model: str) -> str:
        """What a start does now, in a few words such as `starting phase=loading 41% eta=12s`."""
        state = self.states.get(model)
        if state is None:
            return "starting"
        stage = "" if isinstance(state.stage, UnsetType) else _UNFIT.sub("-", state.stage)[:_STAGE_LIMIT]
        words = ["waking" if stage == WAKING else _VERBS.get(state.phase, "starting")]
        if self.lost:
            return f"{words[0]} registry=lost"  # what it said is old: no figures
        if not isinstance(state.position, UnsetType):
            words.append(f"pos={state.position}")
        if stage and stage != WAKING:
            words.append(f"phase={stage}")
        if not isinstance(state.percent, UnsetType):
            words.append(f"{state.percent}%")
        if not isinstance(state.eta_s, UnsetType):
            words.append(f"eta={math.ceil(state.eta_s)}s")
        return " ".join(words)

    def told(self, model: str) -> dict[str, object]:
        """Members of an error about `model`: how its deployment stands; figures only while they are fresh."""
        state = self.states.get(model)
        if state is None:
            return {}
        told: dict[str, object] = {"deployment": state.deployment, "phase": state.phase.value}
        if not self.lost:
            told |= {name: value for name, value in _figures(state).items() if not isinstance(value, UnsetType)}
        return told


def is_startable(state: ModelState) -> bool:
    """True when it is, or can be, started: one that failed too, where the registry tries again soon."""
    return state.hold and state.phase is not DeploymentPhase.UNSCHEDULABLE


def retry_after_s(state: ModelState) -> int:
    """The time until it should be ready, as `Retry-After` has it: bounded, since clients ignore what is longer."""
    if isinstance(state.eta_s, UnsetType):
        return RETRY_AFTER_S
    return max(1, min(RETRY_AFTER_LIMIT_S, math.ceil(state.eta_s)))


def _figures(state: ModelState) -> Mapping[str, object]:
    return {
        "stage": state.stage,
        "percent": state.percent,
        "eta_s": state.eta_s,
        "position": state.position,
        "reason": state.reason,
    }
