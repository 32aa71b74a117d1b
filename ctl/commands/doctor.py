"""`svcctl doctor`: look at everything that usually goes wrong, and say what to do about it."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import TypeVar
from urllib.parse import urlsplit

from common import __version__
from common.wire.babysitter import BabysitterHealth
from common.wire.base import Message
from common.wire.record import ServiceRecord
from common.wire.registry import RegistryHealth, ReplicasHealth
from common.wire.replica import ReplicaInfo
from common.wire.router import RoutedService, RouterHealth
from ctl import answers, ports
from ctl.api import Api, Place
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.doctor import judge, machine
from ctl.doctor.certificates import certificate
from ctl.doctor.finding import Finding, Verdict, fault, ok, summary, table
from ctl.doctor.nodes import nodes
from ctl.launcher.plan import BABYSITTER
from ctl.launcher.state_dir import Launched, StateDir
from ctl.problem import Problem

DOCTOR_TIMEOUT_S = 5.0
M = TypeVar("M", bound=Message)


async def doctor(call: Call) -> int:
    """Run every check; 1 when one found a fault."""
    findings = [*machine.packages(), *machine.disk(call.state_dir), machine.limits(), *secrets(call)]
    if all(one.verdict is not Verdict.FAULT for one in findings if one.check in ("token", "key")):
        async with call.connect() as calls:
            findings += await services(calls, call)
            findings += await started_here(calls, call)
            findings += await certificates(calls, call)
    if call.out.as_json:
        call.out.document({"findings": [asdict(one) for one in findings], "summary": summary(findings)})
    else:
        call.out.table(table(findings))
        call.out.line(summary(findings), "bold")
    return Code.FAILED if any(one.verdict is Verdict.FAULT for one in findings) else Code.OK


def secrets(call: Call) -> list[Finding]:
    """The files with the token and the key."""
    return [
        machine.secret("token", "--token-file", lambda: call.registry, call.args.token_file),
        machine.secret("key", "--key-file", lambda: call.router, call.args.key_file),
    ]


async def services(calls: Api, call: Call) -> list[Finding]:
    """What registry, router and replica API say."""
    registry, router = call.registry, call.router
    (registry_findings, health), (router_findings, router_health) = await asyncio.gather(
        reach(calls, registry, "registry"), reach(calls, router, "router")
    )
    findings = [*registry_findings, *router_findings]
    records = None
    if health is not None:
        findings += judge.registry(answers.read(RegistryHealth, health))
        records = await listed(calls, registry, "/services", ServiceRecord, findings)
        findings += judge.addresses(records or ())
        findings += await nodes(calls, records or ())
    if router_health is not None:
        routed = await listed(calls, router, "/services", RoutedService, findings)
        findings += judge.router(answers.read(RouterHealth, router_health), routed or (), records)
    if health is not None or call.args.api_url:
        findings += await replica_api(calls, call)
    return findings


async def certificates(calls: Api, call: Call) -> list[Finding]:
    """How long those hold that registry and router show; `nodes` asks the others."""
    asked = (certificate(one.name, one.url, calls.tls, time.time()) for one in (call.registry, call.router))
    return list(chain.from_iterable(await asyncio.gather(*asked)))


async def started_here(calls: Api, call: Call) -> list[Finding]:
    """What the babysitters say that were launched here: one whose own record is refused too is in no list."""
    launched = [one for one in StateDir(call.state_dir).all() if one.kind == BABYSITTER and one.url]
    findings = await asyncio.gather(*(of_babysitter(calls, one) for one in launched))
    return list(chain.from_iterable(findings))


async def of_babysitter(calls: Api, launched: Launched) -> list[Finding]:
    """What one says; 'svcctl status' shows who does not answer."""
    place = Place(launched.name, (launched.url,), "")
    try:
        health = await calls.call(place, "GET", "/health", timeout_s=DOCTOR_TIMEOUT_S)
    except Problem:
        return []
    return list(judge.babysitter(launched.name, answers.read(BabysitterHealth, health)))


async def replica_api(calls: Api, call: Call) -> list[Finding]:
    """Its version, and its replicas."""
    findings: list[Finding] = []
    try:
        health = await calls.call(call.api, "GET", "/api/v1/health", timeout_s=DOCTOR_TIMEOUT_S)
    except Problem as problem:
        return [fault("replica API", problem.message, problem.hint or "'svcctl status' shows who answers")]
    findings.append(judge.versions(__version__, answers.read(ReplicasHealth, health).version, "the replica API"))
    infos = await listed(calls, call.api, "/api/v1/replicas", ReplicaInfo, findings)
    return [*findings, *judge.replicas(infos or (), time.time())]


async def reach(calls: Api, place: Place, check: str) -> tuple[list[Finding], object]:
    """Whether a service answers, whether it is the right one, and how its clock goes."""
    before = time.time()
    try:
        health = await calls.call(place, "GET", "/health", timeout_s=DOCTOR_TIMEOUT_S)
    except Problem as problem:
        return [fault(check, problem.message, silent(place, problem))], None
    if health.get(check) != "running":
        seen = f"what answers at {place.url} is no {check} of this suite"
        return [fault(check, seen, f"say where it is with {place.option}, or choose another port")], None
    return [
        ok(check, f"answers at {place.url}"),
        judge.clock(f"the {check}", health.get("timestamp"), before, time.time()),
    ], health


def silent(place: Place, problem: Problem) -> str:
    """What to do about a service that does not answer: it depends on who has its port."""
    address = urlsplit(place.url)
    if judge.is_near(address.hostname or "") and (who := ports.holder(address.port or 80)):
        return f"port {address.port} is held by {who}: stop it, or choose another port"
    return problem.hint


async def listed(calls: Api, place: Place, path: str, kind: type[M], findings: list[Finding]) -> Sequence[M] | None:
    """The list at `path`, in the member that is called as its last part; a refusal is a finding."""
    try:
        answer = await calls.call(place, "GET", path, timeout_s=DOCTOR_TIMEOUT_S)
    except Problem as problem:
        findings.append(fault("access", problem.message, problem.hint or "see the message"))
        return None
    return answers.items(kind, answer, path.rpartition("/")[2])


COMMANDS = (
    Command(
        "doctor",
        doctor,
        details="Checks packages, disk, limits, token files, ports, clocks, registry, store, router, replicas and\n"
        "versions. Exit code 1 when something does not work; warnings alone give 0.",
        examples=("svcctl doctor", "svcctl doctor --json | jq '.findings[] | select(.verdict == \"fault\")'"),
    ),
)
