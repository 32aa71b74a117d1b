"""What ends a node: its order, and the agent's replicas, which outlive everything unless they are stopped first."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from common.wire.replica import ReplicaInfo
from common.wire.words import ReplicaStatus
from ctl import answers
from ctl.api import Api, Place
from ctl.codes import Code
from ctl.follow import path_of
from ctl.launcher.plan import AGENT, BABYSITTER, REGISTRY, ROUTER
from ctl.problem import Problem

ORDER = (BABYSITTER, AGENT, ROUTER, REGISTRY)
"""Servers first, so that nothing is asked of a server that is going."""
POLL_S = 0.25


async def stop_replicas(calls: Api, agent: Place, timeout_s: float, tell: Callable[[str], None]) -> None:
    """Stop them all, and wait.

    Raises:
        Problem: The agent does not answer, or one did not stop in time.
    """
    remaining = await alive(calls, agent)
    for name in remaining:
        await calls.call(agent, "POST", path_of(name, "/stop"), body={"force": False})
    deadline = time.monotonic() + timeout_s
    while remaining:
        still = await alive(calls, agent)
        for name in sorted(set(remaining) - set(still)):
            tell(f"{name}: stopped")
        remaining = still
        if remaining and time.monotonic() >= deadline:
            raise Problem(
                f"{', '.join(remaining)} did not stop within {timeout_s:g} s",
                hint="give it longer, or 'svcctl replicas stop --force'",
                code=Code.TIME_IS_UP,
            )
        await asyncio.sleep(POLL_S if remaining else 0)


async def count_replicas(calls: Api, agent: Place) -> int:
    """How many go on without the agent; 0 also for one that does not tell, which is ended all the same."""
    with suppress(Problem):
        return len(await alive(calls, agent))
    return 0


async def alive(calls: Api, agent: Place) -> list[str]:
    """Replicas that have not stopped; a failed one still has its babysitter."""
    infos = answers.items(ReplicaInfo, await calls.get(agent, "/api/v1/replicas"), "replicas")
    return [info.replica_id for info in infos if info.status is not ReplicaStatus.STOPPED]
