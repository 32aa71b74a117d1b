"""Telling the registry of replicas that call themselves healthy and from which no request gets anything (W26).

Their babysitters hear it with their next heartbeat's answer and have the server prove itself. It is said again while it
lasts; a registry that does not take it changes nothing for requests.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping

import structlog

from common.discovery.registry_client import RegistryClient
from router.control.metrics import why_set_aside
from router.control.views import is_healthy
from router.counters import SharedCounters
from router.model import Replica
from router.outlier import TOLD

log = structlog.get_logger(__name__)
TELL_S = 5.0


def failing(replicas: Iterable[Replica], counters: SharedCounters) -> dict[str, str]:
    """By name: why nothing is sent to replicas whose record, lease and probes say that they are well."""
    reasons = {}
    for replica in replicas:
        if is_healthy(replica) and not replica.static and replica.record.instance_id is not None:
            why = why_set_aside(counters, replica.slot)
            if why is not None:
                reasons[replica.name] = TOLD[why]
    return reasons


async def tell(client: RegistryClient, router: str, look: Callable[[], Mapping[str, str]]) -> None:
    """Say what there is to complain of, for ever; and once more when it is over."""
    complaints: Mapping[str, str] = {}
    while True:
        await asyncio.sleep(TELL_S)
        before, complaints = complaints, look()
        if complaints or before:
            await client.complain(router, complaints)
        if complaints and complaints.keys() != before.keys():
            log.warning("replica.complained_of", replicas=dict(list(complaints.items())[:10]), count=len(complaints))
