"""Deployments as commands use them: their paths, and how they are waited for."""

import asyncio
import time
from argparse import ArgumentParser
from contextlib import aclosing
from functools import partial
from urllib.parse import quote

from common.wire.base import JsonObject
from common.wire.deployment import DeploymentInfo, DeploymentPhase
from ctl import answers, completers
from ctl.api import Api
from ctl.call import Call
from ctl.codes import Code
from ctl.follow import events_of
from ctl.live import board
from ctl.problem import Problem
from ctl.progress import ProgressBoard
from ctl.views import deployments as views

ROOT = "/api/v1/deployments"
SETTLE_S = 3.0
"""A deployment that failed before the call may say so for a moment after it."""
STREAMS_AT_ONCE = 32
"""A registry has 256 for everybody."""
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


async def post(call: Call, rest: str, said: str, body: object = None) -> int:
    """A `POST` about the deployment named, and what is said of it."""
    async with call.connect() as calls:
        answer = await calls.call(call.registry, "POST", path_of(call.args.name, rest), body=body)
    if call.out.as_json:
        call.out.document(answer)
    call.out.note(f"{call.args.name}: {said}", "")
    return Code.OK


async def until_ready(call: Call, calls: Api, names: list[str], *, may_be_cold: bool = False) -> int:
    """Wait until all of `names` are ready; `may_be_cold`: or run none because none is wanted.

    Raises:
        Problem: One cannot start, or the time is up.
    """
    try:
        async with asyncio.timeout(call.args.timeout):
            with board(call.out) as shown:
                streams = asyncio.Semaphore(STREAMS_AT_ONCE)

                async def accompany(name: str) -> None:
                    async with streams:
                        await _accompany(call, calls, name, shown, may_be_cold)

                ended = await asyncio.gather(*map(accompany, names), return_exceptions=True)
    except TimeoutError as error:
        message = f"not ready after {call.args.timeout:g} s: {', '.join(names)}"
        raise Problem(message, hint="it goes on; see 'svcctl deployments'", code=Code.TIME_IS_UP) from error
    for one in ended:
        if isinstance(one, BaseException):
            raise one
    return Code.OK


async def _accompany(call: Call, calls: Api, name: str, shown: ProgressBoard, may_be_cold: bool) -> None:  # noqa: FBT001 - one caller
    began = time.monotonic()
    ask = partial(info_of, calls, call, name)
    async with aclosing(events_of(calls, call.registry, path_of(name), ask)) as events:
        async for word, data in events:
            if word == "end":
                raise Problem(f"{name} was deleted", code=Code.NOT_FOUND)
            info = answers.read(DeploymentInfo, data)
            early_s = began + SETTLE_S - time.monotonic()
            if info.phase in BAD and early_s > 0:
                await asyncio.sleep(early_s)
                info = answers.read(DeploymentInfo, await ask())
            if _is_there(info, shown, may_be_cold):
                return


def _is_there(info: DeploymentInfo, shown: ProgressBoard, may_be_cold: bool) -> bool:  # noqa: FBT001 - one caller
    """Tell how far it is.

    Raises:
        Problem: It cannot start.
    """
    rests = may_be_cold and info.wanted == 0 and info.phase in (DeploymentPhase.COLD, DeploymentPhase.ASLEEP)
    if info.phase is DeploymentPhase.READY or rests:
        shown.end(info.name, info.phase)
        return True
    if info.phase in BAD:
        shown.end(info.name, info.phase, well=False)
        why = f": {info.reason}" if info.reason else ""
        raise Problem(f"{info.name} is {info.phase}{why}", hint=f"see 'svcctl deployments {info.name}'")
    share = info.percent / 100 if isinstance(info.percent, int) else None
    shown.show(info.name, views.stage(info), share=share, detail=views.eta(info))
    return False
