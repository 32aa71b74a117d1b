"""PURE. The bodies of the control plane's answers (docs/contract.md 2), from plain data."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.wire.record import plain_weight
from router.model import Eligibility, Replica


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
    return replica.eligibility in (Eligibility.FRESH, Eligibility.SUSPECT)


def service(replica: Replica, counts: Counts, unreached: tuple[int, str] | None = None) -> dict[str, Any]:
    """One entry of `/services`; `babysitter_url` is the service's port + 1, as its ancestors had it.

    `problem` is there when requests cannot reach the replica, whatever its probes say, or a probe says why it fails.
    """
    problem = replica.problem if unreached is None else f"{unreached[1]} ({unreached[0]} requests in a row)"
    record = replica.record
    return {
        "name": record.name,
        "host": record.host,
        "port": record.port,
        "url": record.url,
        "babysitter_url": f"http://{record.host}:{record.port + 1}",
        "healthy": is_healthy(replica),
        "request_count": counts.requests,
        "error_count": counts.errors,
        "response_time": counts.response_time_s,
        "weight": plain_weight(replica.weight),
        "models": list(replica.models),
        "metadata": record.metadata,
        "standing": replica.eligibility.value,
        "in_flight": counts.in_flight,
        "static": replica.static,
        **({"set_aside": counts.set_aside} if counts.set_aside is not None else {}),
        **({} if problem is None else {"problem": problem}),
    }


def model_list(replicas: Sequence[Replica], aliases: Mapping[str, Collection[str]] | None = None) -> dict[str, Any]:
    """OpenAI's list: the union over healthy replicas, one entry per id, sorted; and `aliases` of what is in it.

    A replica's own model object (`metadata.models_list`, else as its server told our probe) is shown when it has one;
    `created` is 0 and `owned_by` its parent service otherwise.
    """
    found: dict[str, dict[str, Any]] = {}
    for replica in replicas:
        if not is_healthy(replica):
            continue
        metadata = replica.record.metadata
        listed = metadata.get("models_list", _reported(metadata, "models_list"))
        objects = dict(replica.learned_objects) | {
            item["id"]: item
            for item in (listed if isinstance(listed, list | tuple) else ())
            if isinstance(item, dict) and isinstance(item.get("id"), str)
        }
        owner = metadata.get("parent_service") or replica.name
        for model in replica.models:
            plain = {"id": model, "object": "model", "created": 0, "owned_by": str(owner)}
            found.setdefault(model, {**plain, **objects.get(model, {})})
    for alias, parts in (aliases or {}).items():
        if not found.keys().isdisjoint(parts):
            found.setdefault(alias, {"id": alias, "object": "model", "created": 0, "owned_by": "router"})
    return {"object": "list", "data": [found[model] for model in sorted(found)]}


def health(
    replicas: Sequence[Replica], registry_url: str, registry_error: str | None, timestamp: str, *, left_out: int = 0
) -> dict[str, Any]:
    """`/health`: 200 always; what it says is in the body. `left_out`: replicas that have no place in the table."""
    healthy = sum(map(is_healthy, replicas))
    message = "Router is running" if healthy else "Router is running, but no healthy services are available"
    if left_out:
        message += f"; {left_out} services are left out: raise max_endpoints"
    return {
        "status": "healthy" if healthy else "running",
        "router": "running",
        "healthy_services": f"{healthy}/{len(replicas) + left_out}",
        "left_out": left_out,
        "registry_url": registry_url,
        "registry_error": registry_error,
        "message": message,
        "timestamp": timestamp,
    }


def _reported(metadata: Mapping[str, Any], name: str) -> Any:
    """A member of the replica report in a record, for what was too long for the record itself."""
    report = metadata.get("replica")
    return report.get(name) if isinstance(report, dict) else None
