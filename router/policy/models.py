"""PURE. What is set per model: its policy, where its name leads, who stands in for it, and its requests' parameters.

A rule's name is a model's, or a pattern (`gpt-*`); the exact name wins, then the longest pattern. A rule with a `split`
is an alias: each request becomes one for a real model, by weight among those that have a ready replica, the same key
always the same one while all are ready. A model (or alias) without any ready replica leads to its first fallback that has
one. Both happen once, at the request's beginning; what they lead to is final.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Final
from zlib import crc32

import msgspec

from router.policy.parameters import Parameters
from router.policy.rule import Rng

POLICIES = ("cost", "round_robin", "least_loaded", "session")
RETIRED = {"prefix": "cost", "random": "round_robin", "two_choices": "least_loaded"}
"""Policies that were there to compare with, and what takes the place of each in settings that still name it; they live on in
`bench/replay`."""
MEMORY: Final = 4096
"""Names whose rule is remembered; clients choose names, so it is bounded."""
_UNIT = 2.0**32


class ModelRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is set for one name or pattern."""

    policy: str | None = None
    split: dict[str, float] = {}
    fallbacks: tuple[str, ...] = ()
    parameters: Parameters | None = None
    """What is changed in its requests."""
    messages: str | None = None
    """`native` or `translate`, whatever is known of its replicas (`proxy/translation.py`)."""
    rescue: bool = False
    """A stream whose replica is lost goes on at another."""
    hedge: bool = False
    """A request that waits unusually long is sent to another replica too."""
    ask_usage: bool = False
    """Streams are asked to tell their usage; what the client did not ask for does not reach it."""


NO_RULE = ModelRule()


class ModelRules:
    """All rules of a router.

    Args:
        policy: For models without one of their own.
        rules: By name or pattern.
    """

    def __init__(self, policy: str = "cost", rules: dict[str, ModelRule] | None = None) -> None:
        self.rules = rules or {}
        self.has_parameters = any(rule.parameters is not None for rule in self.rules.values())
        self.asks_usage = any(rule.ask_usage for rule in self.rules.values())
        self.survives = any(rule.rescue or rule.hedge for rule in self.rules.values())
        self._policy = policy
        self._patterns = sorted((name for name in self.rules if _is_pattern(name)), key=len, reverse=True)
        self._found: dict[str, ModelRule] = {}

    def find(self, model: str) -> ModelRule:
        """The rule for `model`."""
        if not self.rules:
            return NO_RULE
        rule = self._found.get(model)
        if rule is None:
            rule = self.rules.get(model)
            if rule is None:
                pattern = next((pattern for pattern in self._patterns if fnmatchcase(model, pattern)), None)
                rule = NO_RULE if pattern is None else self.rules[pattern]
            if len(self._found) >= MEMORY:
                self._found.clear()
            self._found[model] = rule
        return rule

    def policy_of(self, model: str | None) -> str:
        """The name of the policy for `model`, or for requests that name none."""
        return (self.find(model).policy if model is not None else None) or self._policy

    def resolve(self, model: str, key: str | None, is_ready: Callable[[str], bool], rng: Rng) -> str:
        """The model that a request for `model` is sent to; `model` itself when nothing better is known.

        Args:
            model: As the client named it.
            key: What ties requests together, if anything.
            is_ready: Whether a model has a ready replica.
            rng: Decides between the parts of a split for requests without a key.
        """
        rule = self.find(model)
        split = {name: weight for name, weight in rule.split.items() if weight > 0 and is_ready(name)}
        if split:
            share = rng.random() if key is None else crc32(key.encode("utf-8", "replace")) / _UNIT
            return _part(split, share)
        if not rule.split and is_ready(model):
            return model
        fallbacks = list(rule.fallbacks)
        for name in rule.split:
            fallbacks += self.find(name).fallbacks if name != model else ()
        return next((name for name in fallbacks if is_ready(name)), next(iter(rule.split), model))

    def reach(self, model: str) -> frozenset[str]:
        """Every name that a request for `model` may lead to."""
        rule = self.find(model)
        spares = [name for part in (model, *rule.split) for name in self.find(part).fallbacks]
        return frozenset((model, *rule.split, *spares))

    def names(self, model: str) -> bool:
        """True when a rule is about `model` or leads to it; a pattern alone says nothing of it."""
        return model in self.rules or any(
            model in rule.split or model in rule.fallbacks for rule in self.rules.values()
        )

    def aliases(self) -> list[str]:
        """Names (no patterns) that lead elsewhere, for the list of models."""
        return [name for name, rule in self.rules.items() if rule.split and not _is_pattern(name)]


def faults(rules: dict[str, ModelRule]) -> list[str]:
    """What is wrong with `rules`, one line each."""
    lines = []
    for name, rule in rules.items():
        if rule.policy is not None and rule.policy not in POLICIES:
            lines.append(f"models.{name}.policy: must be one of {', '.join(POLICIES)} (got {rule.policy})")
        if any(weight < 0 for weight in rule.split.values()) or (rule.split and not any(rule.split.values())):
            lines.append(f"models.{name}.split: weights must be 0 or more, and one above 0")
        lines += [
            f"models.{name}: leads to a pattern, {part!r}"
            for part in (*rule.split, *rule.fallbacks)
            if _is_pattern(part)
        ]
    return lines


def _part(split: dict[str, float], share: float) -> str:
    at = share * sum(split.values())
    for name, weight in split.items():
        at -= weight
        if at < 0:
            return name
    return next(reversed(split))


def _is_pattern(name: str) -> bool:
    return any(letter in name for letter in "*?[")
