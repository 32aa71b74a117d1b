"""`svcctl status`: is everything up? What was launched here, and who answers at the configured addresses."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from common.wire.replica import ReplicaInfo
from ctl import answers
from ctl.api import Api, Place
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.launcher import processes
from ctl.launcher.plan import AGENT, BABYSITTER, REGISTRY, ROUTER
from ctl.launcher.state_dir import Launched, StateDir
from ctl.problem import Problem
from ctl.views import node
from ctl.views.node import Seen

DETAILS: Mapping[str, Callable[[object], str]] = {
    REGISTRY: node.registry_detail,
    ROUTER: node.router_detail,
    AGENT: node.api_detail,
    BABYSITTER: node.babysitter_detail,
}
WELL = {"healthy", "running", "ready"}


async def status(call: Call) -> int:
    """Ask everybody at once, and show it."""
    here = sorted(StateDir(call.state_dir).all(), key=lambda one: (list(DETAILS).index(one.kind), one.name))
    kinds = {launched.kind for launched in here}
    async with call.connect() as calls:
        asked = [look(calls, launched) for launched in here]
        elsewhere = ((REGISTRY, call.registry), (ROUTER, call.router))
        asked += [look_at(calls, kind, place) for kind, place in elsewhere if kind not in kinds]
        seen = sorted(await asyncio.gather(*asked), key=lambda one: one.name not in DETAILS)
        replicas = await listed(calls, call)
    if call.out.as_json:
        call.out.document({"services": [asdict(one) for one in seen], "replicas": replicas})
    else:
        call.out.table(node.table(seen))
        if replicas is not None:
            infos = answers.items(ReplicaInfo, {"replicas": replicas}, "replicas")
            call.out.line(node.replicas_line(infos), "dim" if not infos else "")
            for info in infos:
                if waits := node.long_wait(info, time.time()):
                    call.out.line(f"{info.replica_id} {waits}", "yellow")
        if not here:
            call.out.note(f"nothing was started from {call.state_dir}; 'svcctl up' starts a node")
    return Code.OK if all(one.well for one in seen) else Code.FAILED


async def look(calls: Api, launched: Launched) -> Seen:
    """A process that was launched here."""
    process = processes.find(launched)
    if process is None:
        return Seen(launched.name, launched.url, "not running", f"see {launched.log}", well=False)
    place = Place(launched.name, (launched.url,), "")
    age_s = time.time() - process.create_time()
    return await _ask(calls, launched.kind, place, pid=launched.pid, since_s=age_s)


async def look_at(calls: Api, kind: str, place: Place) -> Seen:
    """A service that somebody else started."""
    return await _ask(calls, kind, Place(kind, place.urls, place.option, place.token, place.secret))


async def _ask(calls: Api, kind: str, place: Place, *, pid: int | None = None, since_s: float | None = None) -> Seen:
    try:
        health = await calls.call(place, "GET", "/health", timeout_s=3.0)
    except Problem as problem:
        return Seen(place.name, place.url, "no answer", problem.message, pid, since_s, well=False)
    word = str(health.get("status", "?"))
    return Seen(place.name, place.url, word, DETAILS[kind](health), pid, since_s, well=word in WELL)


async def listed(calls: Api, call: Call) -> list[object] | None:
    """The replicas; None when nobody tells."""
    try:
        return list((await calls.get(call.api, "/api/v1/replicas")).get("replicas", []))
    except Problem:
        return None


COMMANDS = (
    Command(
        "status",
        status,
        details="Exit code 0 when every one of them is well.",
        examples=("svcctl status", "svcctl status --json"),
    ),
)
