"""PURE. The node at a glance: its services, what was launched here, replicas by state."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from common.wire.babysitter import BabysitterHealth
from common.wire.registry import RegistryHealth, ReplicasHealth
from common.wire.replica import ReplicaInfo
from common.wire.router import RouterHealth
from common.wire.words import ReplicaStatus
from ctl import answers
from ctl.table import TextTable
from ctl.views.groups import whole
from ctl.views.replicas import first_line, whole_ones
from ctl.views.words import duration, moment

SETTLED = frozenset({ReplicaStatus.READY, ReplicaStatus.STOPPING, ReplicaStatus.STOPPED, ReplicaStatus.FAILED})
LONG_WAIT_S = 60.0
"""A start that takes longer is shown with its last reason: a large model may take it, one that answers 401 never ends."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One service as it answered. `since_s` is its age in seconds, when it was launched here."""

    name: str
    url: str
    health: str
    detail: str = ""
    pid: int | None = None
    since_s: float | None = None
    well: bool = True


def table(seen: Sequence[Seen]) -> TextTable:
    """One row for each service."""
    rows = [
        (
            one.name,
            one.health,
            "" if one.pid is None else str(one.pid),
            "" if one.since_s is None else duration(one.since_s),
            one.url,
            one.detail,
        )
        for one in seen
    ]
    return TextTable(("NAME", "HEALTH", "PID", "AGE", "URL", "DETAIL"), rows, right=frozenset({"PID", "AGE"}))


def registry_detail(answer: object) -> str:
    """What the registry says of itself."""
    health = answers.read(RegistryHealth, answer)
    detail = f"{health.healthy_services}/{health.registered_services} records healthy"
    if health.self_preservation:
        detail += "; many leases ended at once, so none is dropped"
    return detail if health.store == "ok" else f"{detail}; its store is {health.store}"


def router_detail(answer: object) -> str:
    """What the router says of itself."""
    health = answers.read(RouterHealth, answer)
    detail = f"{health.healthy_services or '?'} replicas can be asked"
    if health.left_out:
        detail += f"; {health.left_out} are left out: raise --max-endpoints"
    return f"{detail}; registry: {health.registry_error}" if health.registry_error else detail


def api_detail(answer: object) -> str:
    """What the replica API says of itself."""
    health = answers.read(ReplicasHealth, answer)
    return f"{health.replicas_ready}/{health.replicas_total} replicas ready"


def babysitter_detail(answer: object) -> str:
    """What a babysitter says of its server."""
    health = answers.read(BabysitterHealth, answer)
    restarts = f"restarts {health.restart_count}" if health.restart_count else ""
    return "; ".join(part for part in (restarts, first_line(health.error_message), older_settings(health)) if part)


def older_settings(health: BabysitterHealth | ReplicaInfo) -> str:
    """What of a babysitter's file is not in force; nothing when all of it is."""
    if health.config_refused:
        return f"has a file with a fault, which is not in force: {first_line(health.config_refused)}"
    return f"runs with older settings than its file: {', '.join(health.need_restart)}" if health.need_restart else ""


def long_wait(info: ReplicaInfo, now: float) -> str:
    """What a replica has been waiting for longer than usual, with its last reason (W33); nothing when it has not."""
    since, reason = moment(info.status_since), first_line(info.error_message)
    if info.status in SETTLED or not reason:
        return ""
    lasted_s = 0.0 if since is None else max(0.0, now - since)
    if lasted_s < LONG_WAIT_S and not info.restart_count:
        return ""
    again = f", restarted {info.restart_count} times" if info.restart_count else ""
    return f"has been {info.status} for {duration(lasted_s)}{again}: {reason}"


def replicas_line(replicas: Sequence[ReplicaInfo]) -> str:
    """Replicas by state, in a sentence."""
    if not replicas:
        return "no replicas"
    counts = Counter(whole([part.status for part in one]) for one in whole_ones(replicas))
    return f"{counts.total()} replicas: " + ", ".join(f"{count} {status}" for status, count in counts.most_common())
