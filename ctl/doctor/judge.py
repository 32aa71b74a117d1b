"""PURE. What the services' answers mean for their operator."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.names import is_localhost
from common.wire.words import RecordKind, ReplicaStatus
from ctl.doctor.finding import Finding, fault, ok, skipped, warn
from ctl.views import node
from ctl.views.words import duration, moment

CLOCK_WARN_S, CLOCK_FAULT_S = 2.0, 60.0
EPHEMERAL = range(32_768, 61_000)
"""Ports that the kernel gives to outgoing connections: a server there may find its port taken after a restart (E8)."""
Answer = Mapping[str, Any]


def registry(health: Answer) -> Iterator[Finding]:
    """Its store and its leases."""
    store = health.get("store", "ok")
    if store == "ok":
        yield ok("store", "the registry can write its records")
    else:
        yield fault("store", f"the registry's store is {store}", "look at its log: the disk, or etcd")
    if health.get("self_preservation"):
        yield warn(
            "leases",
            "many leases ended at once, so the registry drops none",
            "look at the network between the registry and the nodes",
        )
    count, well = health.get("registered_services"), health.get("healthy_services")
    yield ok("records", f"{well} of {count} records are healthy")


def router(health: Answer, known: Sequence[Answer], records: Sequence[Answer] | None) -> Iterator[Finding]:
    """Whether it follows the registry, and knows the servers that the registry knows."""
    for service in known:
        if service.get("problem"):
            yield fault(
                "reach",
                f"the router's requests to {service.get('name')} fail: {service['problem']}",
                f"from the router's machine: curl -v {service.get('url')}/health",
            )
    if health.get("registry_error"):
        yield fault(
            "router and registry",
            f"the router cannot follow {health.get('registry_url')}: {health['registry_error']}",
            "start the registry, or start the router with --registry-url and --registry-token-file",
        )
        return
    if health.get("left_out"):
        said = f"{health['left_out']} servers are left out of the router's table and get nothing"
        yield fault("router and registry", said, "start the router with a larger --max-endpoints")
        return
    names = {service.get("name") for service in known}
    wanted = {record.get("name") for record in routable(records or ())}
    missing = sorted(str(name) for name in wanted - names)
    if missing:
        yield fault(
            "router and registry",
            f"the router does not know {', '.join(missing)}",
            f"it follows {health.get('registry_url')}: is that the same registry?",
        )
    else:
        yield ok("router and registry", f"the router knows every server ({len(wanted)})")


def replicas(infos: Sequence[Answer], now: float) -> Iterator[Finding]:
    """Those that do not do well at `now` (seconds of wall time), each with what to do."""
    for info in infos:
        name, status = str(info.get("replica_id", "?")), info.get("status")
        metadata = info.get("metadata")
        stale = bool(metadata.get("stale")) if isinstance(metadata, Mapping) else False
        said = str(info.get("error_message") or "").strip().splitlines()
        if status == ReplicaStatus.FAILED:
            reason = f": {said[0]}" if said else ""
            yield fault("replica", f"{name} has failed{reason}", f"svcctl replicas logs {name}, then stop or retry it")
        elif status == ReplicaStatus.UNHEALTHY:
            yield fault("replica", f"{name} is unhealthy", f"svcctl replicas logs {name}")
        elif info.get("registration_error"):
            yield unregistered(name, str(info["registration_error"]))
        elif stale:
            yield warn("replica", f"{name}: its babysitter is silent", "look at its node; start the babysitter again")
        elif info.get("late") and status != ReplicaStatus.READY:
            reason = f": {said[0]}" if said else ""
            yield warn("replica", f"{name} is late, and goes on{reason}", f"svcctl replicas timeline {name}")
        elif info.get("stalled"):
            yield warn("replica", f"{name} starts, but its log is silent", f"svcctl replicas timeline {name}")
        elif waits := node.long_wait(info, now):
            yield warn("replica", f"{name} {waits}", f"svcctl replicas logs {name}, svcctl replicas timeline {name}")
        older = node.older_settings(info)
        if older:
            yield warn("settings", f"{name} {older}", "mend the file, or start the babysitter (and its server) again")
    yield from cautions(infos)
    ready = sum(info.get("status") == ReplicaStatus.READY for info in infos)
    yield ok("replicas", f"{ready} of {len(infos)} replicas are ready")


def cautions(infos: Sequence[Answer]) -> Iterator[Finding]:
    """What replicas warn of, each thing once, whatever number of them says it."""
    warned: dict[str, list[str]] = {}
    for info in infos:
        for text in info.get("warnings") or ():
            if info.get("status") not in (ReplicaStatus.STOPPED, ReplicaStatus.FAILED):
                warned.setdefault(str(text), []).append(str(info.get("replica_id", "?")))
    for text, names in warned.items():
        yield warn(
            "replica", f"{', '.join(names)}: {text.partition(': ')[0]}", text.partition(": ")[2] or "see its request"
        )


def babysitter(name: str, health: Answer) -> Iterator[Finding]:
    """One that was launched here: what the registry does not have, no list of its shows."""
    if health.get("registration_error"):
        yield unregistered(name, str(health["registration_error"]))


def unregistered(name: str, reason: str) -> Finding:
    """A server that serves, and that no router can find."""
    said = f"the registry refuses the record of {name}: {reason}"
    return fault("registration", said, "see 'A server is unregistered' in docs/troubleshooting.md")


def addresses(records: Sequence[Answer]) -> Iterator[Finding]:
    """Addresses that others cannot reach, and ports that the kernel may give away."""
    hosts = {str(record.get("host")) for record in records}
    near = sorted(str(record.get("name")) for record in records if is_near(str(record.get("host"))))
    if near and len(near) < len(records):
        far = sorted(host for host in hosts if not is_near(host))
        yield warn(
            "addresses",
            f"registered at loopback: {', '.join(near)}; others at {', '.join(far)}",
            "give those babysitters --advertise-host with the name that other machines know",
        )
    for record in routable(records):
        if isinstance(record.get("port"), int) and record["port"] in EPHEMERAL:
            yield warn(
                "addresses",
                f"{record.get('name')}: port {record['port']} is one the kernel gives to others",
                f"use a port outside {EPHEMERAL.start} to {EPHEMERAL.stop - 1}",
            )


def clock(name: str, told: object, before: float, after: float) -> Finding:
    """How far a service's clock is from ours; `before` and `after` are when it was asked."""
    theirs = moment(told)
    if theirs is None:
        return skipped("clocks", f"{name} tells no time")
    off_s = max(before - theirs, theirs - after, 0.0)
    if off_s < CLOCK_WARN_S:
        return ok("clocks", f"{name}'s agrees with this machine's")
    said = f"{name}'s is {duration(off_s)} {'behind' if theirs < before else 'ahead of'} this machine's"
    remedy = "run NTP on both (timedatectl set-ntp true); logs and ages are wrong until then"
    return (fault if off_s > CLOCK_FAULT_S else warn)("clocks", said, remedy)


def versions(ours: str, told: Answer, name: str) -> Finding:
    """Whether the service is of our version."""
    theirs = told.get("version")
    if theirs is None:
        return skipped("versions", f"{name} tells no version")
    if theirs == ours:
        return ok("versions", f"svcctl and {name} are both {ours}")
    return warn("versions", f"svcctl is {ours}, {name} is {theirs}", "upgrade the older one")


def routable(records: Sequence[Answer]) -> list[Answer]:
    """Records that requests may go to."""
    return [record for record in records if kind(record) == RecordKind.SERVER]


def kind(record: Answer) -> str:
    """A record's `metadata.type`."""
    metadata = record.get("metadata")
    return str(metadata.get("type", "")) if isinstance(metadata, Mapping) else ""


def is_near(host: str) -> bool:
    """True for a loopback name or address."""
    return is_localhost(host) or host == "::1" or host.startswith("127.")
