"""PURE. What the services' answers mean for their operator."""

from collections.abc import Iterator, Sequence

from common.names import is_localhost
from common.wire.babysitter import BabysitterHealth
from common.wire.record import ServiceRecord
from common.wire.registry import RegistryHealth
from common.wire.replica import ReplicaInfo
from common.wire.router import RoutedService, RouterHealth
from common.wire.words import RecordKind, ReplicaStatus
from ctl.doctor.finding import Finding, fault, ok, skipped, warn
from ctl.views import node
from ctl.views.replicas import first_line, is_stale
from ctl.views.words import duration, moment

CLOCK_WARN_S, CLOCK_FAULT_S = 2.0, 60.0
EPHEMERAL = range(32_768, 61_000)
"""Ports that the kernel gives to outgoing connections: a server there may find its port taken after a restart (E8)."""


def registry(health: RegistryHealth) -> Iterator[Finding]:
    """Its store and its leases."""
    if health.store == "ok":
        yield ok("store", "the registry can write its records")
    else:
        yield fault("store", f"the registry's store is {health.store}", "look at its log: the disk, or etcd")
    if health.self_preservation:
        yield warn(
            "leases",
            "many leases ended at once, so the registry drops none",
            "look at the network between the registry and the nodes",
        )
    yield ok("records", f"{health.healthy_services} of {health.registered_services} records are healthy")


def router(
    health: RouterHealth, routed: Sequence[RoutedService], records: Sequence[ServiceRecord] | None
) -> Iterator[Finding]:
    """Whether it follows the registry, and knows the servers that the registry knows."""
    for service in routed:
        if service.problem:
            yield fault(
                "reach",
                f"the router's requests to {service.name} fail: {service.problem}",
                f"from the router's machine: curl -v {service.url}/health",
            )
    if health.registry_error:
        yield fault(
            "router and registry",
            f"the router cannot follow {health.registry_url}: {health.registry_error}",
            "start the registry, or start the router with --registry-url and --registry-token-file",
        )
        return
    if health.left_out:
        seen = f"{health.left_out} servers are left out of the router's table and get nothing"
        yield fault("router and registry", seen, "start the router with a larger --max-endpoints")
        return
    servers = {record.name for record in routable(records or ())}
    missing = sorted(servers - {service.name for service in routed})
    if missing:
        yield fault(
            "router and registry",
            f"the router does not know {', '.join(missing)}",
            f"it follows {health.registry_url}: is that the same registry?",
        )
    else:
        yield ok("router and registry", f"the router knows every server ({len(servers)})")


def replicas(infos: Sequence[ReplicaInfo], now: float) -> Iterator[Finding]:
    """Those that do not do well at `now` (seconds of wall time), each with what to do."""
    for info in infos:
        name, reason = info.replica_id, first_line(info.error_message)
        why = f": {reason}" if reason else ""
        if info.status is ReplicaStatus.FAILED:
            yield fault("replica", f"{name} has failed{why}", f"svcctl replicas logs {name}, then stop or retry it")
        elif info.status is ReplicaStatus.UNHEALTHY:
            yield fault("replica", f"{name} is unhealthy", f"svcctl replicas logs {name}")
        elif info.registration_error:
            yield unregistered(name, info.registration_error)
        elif is_stale(info):
            yield warn("replica", f"{name}: its babysitter is silent", "look at its node; start the babysitter again")
        elif info.late and info.status is not ReplicaStatus.READY:
            yield warn("replica", f"{name} is late, and goes on{why}", f"svcctl replicas timeline {name}")
        elif info.stalled:
            yield warn("replica", f"{name} starts, but its log is silent", f"svcctl replicas timeline {name}")
        elif waits := node.long_wait(info, now):
            yield warn("replica", f"{name} {waits}", f"svcctl replicas logs {name}, svcctl replicas timeline {name}")
        if older := node.older_settings(info):
            yield warn("settings", f"{name} {older}", "mend the file, or start the babysitter (and its server) again")
    yield from cautions(infos)
    ready = sum(info.status is ReplicaStatus.READY for info in infos)
    yield ok("replicas", f"{ready} of {len(infos)} replicas are ready")


def cautions(infos: Sequence[ReplicaInfo]) -> Iterator[Finding]:
    """What replicas warn of, each thing once, whatever number of them says it."""
    warned: dict[str, list[str]] = {}
    for info in infos:
        if info.status not in (ReplicaStatus.STOPPED, ReplicaStatus.FAILED):
            for text in info.warnings:
                warned.setdefault(text, []).append(info.replica_id)
    for text, names in warned.items():
        what, _, remedy = text.partition(": ")
        yield warn("replica", f"{', '.join(names)}: {what}", remedy or "see its request")


def babysitter(name: str, health: BabysitterHealth) -> Iterator[Finding]:
    """One that was launched here: what the registry does not have, no list of its shows."""
    if health.registration_error:
        yield unregistered(name, health.registration_error)


def unregistered(name: str, reason: str) -> Finding:
    """A server that serves, and that no router can find."""
    seen = f"the registry refuses the record of {name}: {reason}"
    return fault("registration", seen, "see 'A server is unregistered' in docs/troubleshooting.md")


def addresses(records: Sequence[ServiceRecord]) -> Iterator[Finding]:
    """Addresses that others cannot reach, and ports that the kernel may give away."""
    near = sorted(record.name for record in records if is_near(record.host))
    if near and len(near) < len(records):
        far = sorted({record.host for record in records if not is_near(record.host)})
        yield warn(
            "addresses",
            f"registered at loopback: {', '.join(near)}; others at {', '.join(far)}",
            "give those babysitters --advertise-host with the name that other machines know",
        )
    for record in routable(records):
        if record.port in EPHEMERAL:
            yield warn(
                "addresses",
                f"{record.name}: port {record.port} is one the kernel gives to others",
                f"use a port outside {EPHEMERAL.start} to {EPHEMERAL.stop - 1}",
            )


def clock(name: str, timestamp: object, before: float, after: float) -> Finding:
    """How far a service's clock is from ours; `before` and `after` are when it was asked."""
    theirs = moment(timestamp)
    if theirs is None:
        return skipped("clocks", f"{name} tells no time")
    off_s = max(before - theirs, theirs - after, 0.0)
    if off_s < CLOCK_WARN_S:
        return ok("clocks", f"{name}'s agrees with this machine's")
    seen = f"{name}'s is {duration(off_s)} {'behind' if theirs < before else 'ahead of'} this machine's"
    remedy = "run NTP on both (timedatectl set-ntp true); logs and ages are wrong until then"
    return (fault if off_s > CLOCK_FAULT_S else warn)("clocks", seen, remedy)


def versions(ours: str, theirs: str, name: str) -> Finding:
    """Whether the service is of our version; "" for one that tells none."""
    if not theirs:
        return skipped("versions", f"{name} tells no version")
    if theirs == ours:
        return ok("versions", f"svcctl and {name} are both {ours}")
    return warn("versions", f"svcctl is {ours}, {name} is {theirs}", "upgrade the older one")


def routable(records: Sequence[ServiceRecord]) -> list[ServiceRecord]:
    """Records that requests may go to."""
    return [record for record in records if record.type == RecordKind.SERVER]


def is_near(host: str) -> bool:
    """True for a loopback name or address."""
    return is_localhost(host) or host == "::1" or host.startswith("127.")
