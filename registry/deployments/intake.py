"""PURE. What routers tell of the models that are asked for, added up. Soft: a router that is silent counts no more."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from common.wire.deployment import Demand, ModelDemand
from registry.deployments.model import Traffic

SILENT_S = 6.0
ROUTERS_MOST = 256
DECAY_S = 300.0
"""How fast `recent_per_s` forgets."""
_NOTHING = ModelDemand()


@dataclass(slots=True)
class _Router:
    demand: Demand
    at: float


@dataclass(slots=True)
class _Use:
    last_at: float | None = None
    per_s: float = 0.0
    at: float = 0.0


@dataclass(slots=True)
class Intake:
    """Every router's last word."""

    _routers: dict[str, _Router] = field(default_factory=dict)
    _uses: dict[str, _Use] = field(default_factory=dict)

    def heard(self, router: str, demand: Demand, now: float) -> bool:
        """Takes a router's word; True when a model is waited for that it had nobody waiting for before.

        A count that rose is so many requests; one that fell is a router that began anew.
        """
        before = self._routers.get(router)
        if before is None and len(self._routers) >= ROUTERS_MOST:
            self._forget(now)
            if len(self._routers) >= ROUTERS_MOST:
                return False
        urgent = False
        for model, told in demand.models.items():
            then = before.demand.models.get(model, _NOTHING) if before else _NOTHING
            came = told.requests - then.requests if told.requests >= then.requests else told.requests
            if before is None:
                came = 0
            busy = told.in_flight + told.waiting > 0
            if came or busy:
                self._used(model, came, now)
            urgent = urgent or (told.waiting > 0 and then.waiting == 0)
        self._routers[router] = _Router(demand, now)
        return urgent

    def words(self, now: float) -> dict[str, Demand]:
        """Every router's word that still counts, for another registry to hear."""
        self._forget(now)
        return {name: one.demand for name, one in self._routers.items()}

    def traffic(self, model: str, now: float) -> Traffic:
        """All routers' word on one model."""
        heard = [it.demand.models[model] for it in self._routers.values() if model in it.demand.models]
        use = self._uses.get(model)
        return Traffic(
            sum(one.in_flight for one in heard),
            sum(one.waiting for one in heard),
            use.last_at if use else None,
            use.per_s * math.exp((use.at - now) / DECAY_S) if use else 0.0,
        )

    def keep(self, models: Collection[str], now: float) -> None:
        """Forget routers that are silent, and models that nobody deploys any more."""
        self._forget(now)
        self._uses = {model: use for model, use in self._uses.items() if model in models}

    def _forget(self, now: float) -> None:
        self._routers = {name: one for name, one in self._routers.items() if now - one.at <= SILENT_S}

    def _used(self, model: str, came: int, now: float) -> None:
        use = self._uses.setdefault(model, _Use(at=now))
        use.per_s = use.per_s * math.exp((use.at - now) / DECAY_S) + came / DECAY_S
        use.last_at = use.at = now
