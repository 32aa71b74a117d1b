"""What `doctor` asks of each node: is it reachable from here, how does its clock go, which version has its agent?"""

import asyncio
import time
from collections.abc import Sequence
from itertools import chain

from common import __version__
from common.wire.record import ServiceRecord
from common.wire.registry import ReplicasHealth
from common.wire.words import RecordKind
from ctl import answers
from ctl.api import Api, Place
from ctl.doctor import judge
from ctl.doctor.certificates import certificate
from ctl.doctor.finding import Finding, warn
from ctl.problem import Problem

ASK_S = 3.0
AT_ONCE = 32


async def nodes(calls: Api, records: Sequence[ServiceRecord]) -> list[Finding]:
    """One babysitter for each host, and every agent; both answer `/health` to everybody."""
    agents = [record for record in records if record.type == RecordKind.AGENT]
    babysitters: dict[str, ServiceRecord] = {}
    for record in records:
        if record.type not in (RecordKind.AGENT, RecordKind.SERVER):
            babysitters.setdefault(record.host, record)
    limit = asyncio.Semaphore(AT_ONCE)
    findings = await asyncio.gather(*(ask(calls, record, limit) for record in (*babysitters.values(), *agents)))
    return list(chain.from_iterable(findings))


async def ask(calls: Api, record: ServiceRecord, limit: asyncio.Semaphore) -> list[Finding]:
    """What a babysitter or an agent tells, and what its certificate does."""
    async with limit:
        before = time.time()
        try:
            health = await calls.call(Place(record.name, (record.url,), ""), "GET", "/health", timeout_s=ASK_S)
        except Problem as problem:
            return [warn("nodes", f"from here, {problem.message}", "is it up, and does a firewall let you through?")]
        shown = await certificate(record.name, record.url, calls.tls, time.time())
    if record.type == RecordKind.AGENT:
        return [judge.versions(__version__, answers.read(ReplicasHealth, health).version, record.name), *shown]
    return [judge.clock(record.host, health.get("timestamp"), before, time.time()), *shown]
