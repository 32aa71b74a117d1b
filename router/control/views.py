"""PURE. The control plane's answers (docs/contract.md 2), from plain data."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import UNSET

from common.wire.address import url
from common.wire.base import ModelObject
from common.wire.deployment import DeploymentPhase, ModelState
from common.wire.models import ModelList
from common.wire.record import plain_weight
from common.wire.router import RoutedService, RouterHealth
from router.cold import is_startable
from router.model import ABLE, Replica

_STATUSES = {
    DeploymentPhase.COLD: "cold",
    DeploymentPhase.STOPPING: "cold",
    DeploymentPhase.ASLEEP: "asleep",
}
"""What `/v1/models` says of a deployment's model that no replica serves; in every other phase it is `starting`."""


@dataclass(frozen=True, slots=True)
class Counts:
    """An endpoint's counters over all workers; `response_time_s` is the mean."""

    requests: int
    errors: int
    in_flight: int
    response_time_s: float
    set_aside: str | None = None
    """Why it gets no requests for a while, though it may be healthy by its probes; None when it does."""


def is_healthy(replica: Replica) -> bool:
    """True when requests may go to it."""
    return replica.eligibility in ABLE


def service(replica: Replica, counts: Counts, unreached: tuple[int, str] | None = None) -> RoutedService:
    """One entry of `/services`.

    `problem` is there when requests cannot reach the replica, whatever its probes say, or a probe says why it fails.
    """
    problem = replica.problem if unreached is None else f"{unreached[1]} ({unreached[0]} requests in a row)"
    record = replica.record
    return RoutedService(
        name=record.name,
        host=record.host,
        port=record.port,
        url=record.url,
        babysitter_url=replica.hints.babysitter_url or url(record.host, record.port + 1),
        healthy=is_healthy(replica),
        request_count=counts.requests,
        error_count=counts.errors,
        response_time=counts.response_time_s,
        weight=plain_weight(replica.weight),
        models=list(replica.models),
        metadata=record.metadata,
        standing=replica.eligibility.value,
        in_flight=counts.in_flight,
        static=replica.static,
        set_aside=UNSET if counts.set_aside is None else counts.set_aside,
        problem=UNSET if problem is None else problem,
    )


def model_list(
    replicas: Sequence[Replica],
    aliases: Mapping[str, Collection[str]] | None = None,
    deployments: Iterable[ModelState] = (),
) -> ModelList:
    """OpenAI's list: the union over healthy replicas, one entry per id, sorted; and `aliases` of what is in it.

    Models of deployments that have no replica now, and that a request starts, are in it with their `status`.

    Adapters that a replica loads when somebody asks for one are in it.

    A replica's own model object (`metadata.models_list`, else as its server told our probe) is shown when it has one;
    `created` is 0 and `owned_by` its parent service otherwise.
    """
    models: dict[str, ModelObject] = {}
    for replica in replicas:
        if not is_healthy(replica):
            continue
        owner = replica.hints.parent_service or replica.name
        for model in replica.models:
            if model not in models:
                plain = {"id": model, "object": "model", "created": 0, "owned_by": owner}
                models[model] = plain | replica.model_objects.get(model, {})
    for replica in replicas:
        for adapter in replica.loadable if is_healthy(replica) else ():
            owner = replica.hints.parent_service or replica.name
            models.setdefault(
                adapter, {"id": adapter, "object": "model", "created": 0, "owned_by": owner, "parent": _base(replica)}
            )
    for state in filter(is_startable, deployments):
        models.setdefault(state.model, _not_ready(state))
    for alias, parts in (aliases or {}).items():
        if not models.keys().isdisjoint(parts):
            models.setdefault(alias, {"id": alias, "object": "model", "created": 0, "owned_by": "router"})
    return ModelList(data=[models[model] for model in sorted(models)])


def _not_ready(state: ModelState) -> ModelObject:
    """A deployment's model that no replica serves now."""
    plain = {"id": state.model, "object": "model", "created": 0, "owned_by": state.deployment}
    return plain | {"status": _STATUSES.get(state.phase, "starting")}


def _base(replica: Replica) -> str | None:
    """The model that a replica's adapters adapt: the first that has no parent itself."""
    objects = replica.model_objects
    return next((model for model in replica.models if not objects.get(model, {}).get("parent")), None)


def health(
    replicas: Sequence[Replica], registry_url: str, registry_error: str | None, timestamp: str, *, left_out: int = 0
) -> RouterHealth:
    """`/health`: 200 always; what it says is in the body. `left_out`: replicas that have no place in the table."""
    healthy = sum(map(is_healthy, replicas))
    message = "Router is running" if healthy else "Router is running, but no healthy services are available"
    if left_out:
        message += f"; {left_out} services are left out: raise max_endpoints"
    return RouterHealth(
        status="healthy" if healthy else "running",
        healthy_services=f"{healthy}/{len(replicas) + left_out}",
        left_out=left_out,
        registry_url=registry_url,
        registry_error=registry_error,
        message=message,
        timestamp=timestamp,
    )
