"""Deployments as commands use them: their paths, and how they are waited for."""

import asyncio
import time
from argparse import ArgumentParser
from urllib.parse import quote

from common.wire.base import JsonObject
from common.wire.deployment import DeploymentInfo, DeploymentPhase
from ctl import answers, completers
from ctl.api import Api
from ctl.call import Call
from ctl.codes import Code
from ctl.follow import PATIENCE_S, POLL_S
from ctl.live import ProgressBoard, board
from ctl.problem import Problem
from ctl.views import deployments as views

ROOT = "/api/v1/deployments"
SETTLE_S = 3.0
"""A deployment that failed before the call may say so for a moment after it."""
BAD = frozenset({DeploymentPhase.FAILING, DeploymentPhase.UNSCHEDULABLE})


def path_of(name: str, rest: str = "") -> str:
    """A deployment's path."""
    return f"{ROOT}/{quote(name, safe='')}{rest}"


def add_name(parser: ArgumentParser, *, optional: bool = False) -> None:
    """The deployment meant."""
    name = parser.add_argument("name", metavar="NAME", nargs="?" if optional else None, help="the deployment")
    completers.attach(name, completers.deployments)


async def info_of(calls: Api, call: Call, name: str) -> JsonObject:
    """One deployment, as the registry answers.

    Raises:
        Problem: There is none, or nobody answers.
    """
    return await calls.get(call.registry, path_of(name))


async def until_ready(call: Call, calls: Api, names: list[str], *, may_be_cold: bool = False) -> int:
    """Wait until all of `names` are ready; `may_be_cold`: or run none because none is wanted.

    Raises:
        Problem: One cannot start, or the time is up.
    """
    try:
        async with asyncio.timeout(call.args.timeout):
            with board(call.out) as shown:
                waits = (_accompany(call, calls, name, shown, may_be_cold) for name in names)
                ended = await asyncio.gather(*waits, return_exceptions=True)
    except TimeoutError as error:
        message = f"not ready after {call.args.timeout:g} s: {', '.join(names)}"
        raise Problem(message, hint="it goes on; see 'svcctl deployments'", code=Code.TIME_IS_UP) from error
    for one in ended:
        if isinstance(one, BaseException):
            raise one
    return Code.OK


async def _accompany(call: Call, calls: Api, name: str, shown: ProgressBoard, may_be_cold: bool) -> None:  # noqa: FBT001 - one caller
    began = heard = time.monotonic()
    while True:
        now = time.monotonic()
        try:
            info = answers.read(DeploymentInfo, await info_of(calls, call, name))
        except Problem as problem:
            if problem.code is not Code.UNREACHABLE or now - heard > PATIENCE_S:
                raise
        else:
            heard = now
            rests = may_be_cold and info.wanted == 0 and info.phase in (DeploymentPhase.COLD, DeploymentPhase.ASLEEP)
            if info.phase is DeploymentPhase.READY or rests:
                shown.end(name, info.phase)
                return
            if info.phase in BAD and now - began > SETTLE_S:
                shown.end(name, info.phase, well=False)
                why = f": {info.reason}" if info.reason else ""
                raise Problem(f"{name} is {info.phase}{why}", hint=f"see 'svcctl deployments {name}'")
            percent = info.percent if isinstance(info.percent, int) else None
            stage = views.stage(info)
            shown.show(name, stage, share=None if percent is None else percent / 100, detail=views.eta(info))
        await asyncio.sleep(POLL_S)
