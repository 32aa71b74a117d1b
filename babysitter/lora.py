"""PURE. LoRA adapters of one server: which it is to have, what is done next, and which one goes where there is no room.

The settings name adapters and their paths; calls and requests name an adapter only. What is loaded says the engine's own list
of models, where an adapter has a `parent`.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from babysitter import backoff
from babysitter.engine_metrics import work_of
from common.exposition import Family, Sample, UnreadablePage, parse
from common.wire.base import ModelObject
from common.wire.lora import AdapterState, LoraAdapter

MOST_TRIES = 5
"""Loads of an adapter that may fail in a row; then it waits for a call, for other settings, or for the server's next start."""
RETRY_FIRST_S, RETRY_LAST_S = 5.0, 60.0
DWELL_S = 10.0
"""A fresh adapter counts as in use for so long: the request that it was loaded for is on its way."""
IN_USE = "vllm:lora_requests_info"
"""vLLM's gauge of who has requests: its labels name adapters, its value is when that was so (epoch seconds)."""
_USERS = ("running_lora_adapters", "waiting_lora_adapters")


@dataclass(frozen=True, slots=True)
class LoraRules:
    """The settings' adapters, by name their paths; `on_demand`: loaded at the first request, `max_loaded` at once."""

    paths: Mapping[str, str] = field(default_factory=dict)
    on_demand: bool = False
    max_loaded: int = 8


@dataclass(frozen=True, slots=True)
class Trouble:
    """Steps with one adapter that failed in a row, when (monotonic) it may be tried again, and what the engine said."""

    failures: int
    retry_at: float
    error: str


class Use(NamedTuple):
    """Adapters with requests now, and for how many seconds the others have had none, where it is known."""

    busy: frozenset[str]
    idle_s: Mapping[str, float]


class Step(NamedTuple):
    """What is done next with an adapter: load it, or unload it."""

    name: str
    load: bool


def listed(models: Iterable[ModelObject]) -> dict[str, str]:
    """Adapters among the engine's model objects, by name their paths."""
    return {str(model["id"]): str(model.get("root")) for model in models if model.get("parent")}


def next_step(
    rules: LoraRules,
    said: Mapping[str, bool],
    loaded: Mapping[str, str],
    troubles: Mapping[str, Trouble],
    now: float,
) -> Step | None:
    """The first step that is due from what is loaded to what is wanted; None when all is as it should be.

    Args:
        rules: The settings.
        said: The latest word on an adapter, by a call or a load: is it to be loaded? An adapter without one is to be as the
            settings say. One that is there and no longer in the settings was ours, and goes.
        loaded: `listed` now.
        troubles: Of the steps before.
        now: Monotonic seconds.
    """
    due = {name for name in (*loaded, *rules.paths) if name not in troubles or troubles[name].retry_at <= now}
    for name, path in loaded.items():
        is_wrong = name in said if name not in rules.paths else path != rules.paths[name] or said.get(name) is False
        if is_wrong and name in due:
            return Step(name, load=False)
    if len(staying(rules, said, loaded)) >= rules.max_loaded:
        return None
    wanted = [name for name in rules.paths if said.get(name, not rules.on_demand)]
    return next((Step(name, load=True) for name in wanted if name not in loaded and name in due), None)


def staying(rules: LoraRules, said: Mapping[str, bool], loaded: Collection[str]) -> list[str]:
    """Adapters of the settings that are loaded and are not about to leave."""
    return [name for name in rules.paths if name in loaded and said.get(name) is not False]


def failed(before: Trouble | None, error: str, now: float) -> Trouble:
    """One more failure: back off, and after `MOST_TRIES` give up."""
    failures = before.failures if before is not None else 0
    pause_s = backoff.delay_s(failures, first_s=RETRY_FIRST_S, last_s=RETRY_LAST_S, chance=0.5)
    return Trouble(failures + 1, now + pause_s if failures + 1 < MOST_TRIES else inf, error)


def loadable(
    rules: LoraRules, loaded: Collection[str], troubles: Mapping[str, Trouble], doing: Mapping[str, str], now: float
) -> list[str]:
    """Adapters that a request may have loaded: offered as models, though they are not there yet."""
    if not rules.on_demand:
        return []
    away = [name for name in rules.paths if name not in loaded and doing.get(name) != "unloading"]
    return [name for name in away if name not in troubles or troubles[name].retry_at <= now]


def states(
    rules: LoraRules, loaded: Collection[str], troubles: Mapping[str, Trouble], doing: Mapping[str, AdapterState]
) -> list[LoraAdapter]:
    """Every adapter of the settings, for the report."""
    found = []
    for name in rules.paths:
        state: AdapterState = "loaded" if name in loaded else "failed" if name in troubles else "unloaded"
        error = troubles[name].error if name in troubles else None
        found.append(LoraAdapter(name=name, state=doing.get(name, state), error=error))
    return found


def use_of(text: str, names: Collection[str], epoch_s: float) -> Use:
    """Which of `names` have requests, by the engine's Prometheus text; all of them, where it does not tell and is at work."""
    try:
        families = parse(text)
    except UnreadablePage:
        return Use(frozenset(names), {})
    work = work_of(families)
    used = [(one.value, _users(one)) for one in families.get(IN_USE, Family()).samples]
    last = {name: at for at, those in sorted(used, key=lambda one: one[0]) for name in those}
    busy = set(names) & max(used, key=lambda one: one[0])[1] if used else set(names)
    is_idle = work is not None and work.running == 0 and not work.waiting
    return Use(frozenset() if is_idle else frozenset(busy), {name: epoch_s - at for name, at in last.items()})


def victim(loaded: Collection[str], use: Use, loaded_for_s: Mapping[str, float]) -> str | None:
    """The adapter that has been idle for longest; None while all are in use, or were loaded a moment ago."""
    idle_s = {
        name: min(use.idle_s.get(name, inf), loaded_for_s.get(name, inf))
        for name in loaded
        if name not in use.busy and loaded_for_s.get(name, inf) >= DWELL_S
    }
    return max(idle_s, key=idle_s.__getitem__, default=None)


def _users(sample: Sample) -> set[str]:
    return {name for label, names in sample.pairs if label in _USERS for name in names.split(",") if name}
