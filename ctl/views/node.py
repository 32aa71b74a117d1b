"""PURE. The node at a glance: its services, what was launched here, replicas by state."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.wire.words import ReplicaStatus
from ctl.table import TextTable
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


def registry_detail(health: Mapping[str, Any]) -> str:
    """What the registry says of itself."""
    told = f"{health.get('healthy_services', '?')}/{health.get('registered_services', '?')} records healthy"
    if health.get("self_preservation"):
        told += "; many leases ended at once, so none is dropped"
    if health.get("store") not in (None, "ok"):
        told += f"; its store is {health['store']}"
    return told


def router_detail(health: Mapping[str, Any]) -> str:
    """What the router says of itself."""
    told = f"{health.get('healthy_services', '?')} replicas can be asked"
    if health.get("left_out"):
        told += f"; {health['left_out']} are left out: raise --max-endpoints"
    return f"{told}; registry: {health['registry_error']}" if health.get("registry_error") else told


def api_detail(health: Mapping[str, Any]) -> str:
    """What the replica API says of itself."""
    return f"{health.get('replicas_ready', '?')}/{health.get('replicas_total', '?')} replicas ready"


def babysitter_detail(health: Mapping[str, Any]) -> str:
    """What a babysitter says of its server."""
    told = f"restarts {health['restart_count']}" if health.get("restart_count") else ""
    error = str(health.get("error_message") or "").strip().splitlines()
    return "; ".join(part for part in (told, error[0] if error else "", older_settings(health)) if part)


def older_settings(health: Mapping[str, Any]) -> str:
    """What of a babysitter's file is not in force; nothing when all of it is."""
    if health.get("config_refused"):
        return f"has a file with a fault, which is not in force: {str(health['config_refused']).splitlines()[0]}"
    names = health.get("need_restart") or []
    return f"runs with older settings than its file: {', '.join(map(str, names))}" if names else ""


def long_wait(info: Mapping[str, Any], now: float) -> str:
    """What a replica has been waiting for longer than usual, with its last reason (W33); nothing when it has not."""
    status, reason = str(info.get("status", "?")), str(info.get("error_message") or "").strip()
    since, restarts = moment(info.get("status_since")), info.get("restart_count") or 0
    if status in SETTLED or not reason:
        return ""
    lasted_s = 0.0 if since is None else max(0.0, now - since)
    if lasted_s < LONG_WAIT_S and not restarts:
        return ""
    again = f", restarted {restarts} times" if restarts else ""
    return f"has been {status} for {duration(lasted_s)}{again}: {reason.splitlines()[0]}"


def replicas_line(replicas: Sequence[Mapping[str, Any]]) -> str:
    """Replicas by state, in a sentence."""
    if not replicas:
        return "no replicas"
    counts = Counter(str(replica.get("status", "?")) for replica in replicas)
    return f"{len(replicas)} replicas: " + ", ".join(f"{count} {status}" for status, count in counts.most_common())
