"""What `doctor` asks of each node: is it reachable from here, how does its clock go, which version has its agent?"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from common import __version__
from common.wire.words import RecordKind
from ctl.api import Api, Place
from ctl.doctor import judge
from ctl.doctor.finding import Finding, warn
from ctl.problem import Problem

ASK_S = 3.0
AT_ONCE = 32
Answer = Mapping[str, Any]


async def nodes(calls: Api, records: Sequence[Answer]) -> list[Finding]:
    """One babysitter for each host, and every agent; both answer `/health` to everybody."""
    agents = [record for record in records if judge.kind(record) == RecordKind.AGENT]
    sitters: dict[str, Answer] = {}
    for record in records:
        if judge.kind(record) not in (RecordKind.AGENT, RecordKind.SERVER):
            sitters.setdefault(str(record.get("host")), record)
    gate = asyncio.Semaphore(AT_ONCE)
    found = await asyncio.gather(*(ask(calls, record, gate) for record in (*sitters.values(), *agents)))
    return [finding for finding in found if finding is not None]


async def ask(calls: Api, record: Answer, gate: asyncio.Semaphore) -> Finding | None:
    """What a babysitter or an agent tells."""
    name, url = str(record.get("name")), str(record.get("url"))
    async with gate:
        before = time.time()
        try:
            health = await calls.call(Place(name, (url,), ""), "GET", "/health", timeout_s=ASK_S)
        except Problem as problem:
            return warn("nodes", f"from here, {problem.message}", "is it up, and does a firewall let you through?")
    if judge.kind(record) == RecordKind.AGENT:
        return judge.versions(__version__, health, name)
    return judge.clock(f"{record.get('host')}", health.get("timestamp"), before, time.time())
