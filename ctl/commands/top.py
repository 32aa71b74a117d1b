"""`svcctl top`: the fleet live: replicas, state, in flight, tokens per second, time to the first byte."""

from __future__ import annotations  # types of what is imported late

import asyncio
import sys
import time
from argparse import ArgumentParser
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.wire.deployment import DeploymentInfo
from common.wire.replica import ReplicaInfo
from common.wire.router import KeyTraffic, RoutedService
from ctl import answers, late
from ctl.api import Api, Place
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.deployments import ROOT
from ctl.keys import pressed
from ctl.problem import Problem
from ctl.views import top as views
from ctl.views.rates import CounterSample, Rates, rates, read_metrics, total
from ctl.views.top import SORTS, Row

if TYPE_CHECKING:
    from rich import console, live, text

    from ctl import output
else:
    console, live, text, output = map(late.module, ("rich.console", "rich.live", "rich.text", "ctl.output"))

WINDOW_S = 10.0
"""Rates are means of so long, so that a slow model does not flicker between nought and much."""
FRAME_LINES = 5
"""Lines of the screen that are no replicas."""


@dataclass(slots=True)
class TopState:
    """What was seen so far. `troubles` are services that do not answer now."""

    samples: deque[CounterSample] = field(default_factory=deque)
    infos: Sequence[ReplicaInfo] = ()
    services: Sequence[RoutedService] = ()
    deployments: Sequence[DeploymentInfo] = ()
    troubles: list[str] = field(default_factory=list)
    keys: Sequence[KeyTraffic] = ()
    by_key: bool = False
    sort: str = SORTS[0]
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, sample: CounterSample) -> None:
        """Another look at the counters; those older than the window are forgotten, but for the last of them."""
        self.samples.append(sample)
        while len(self.samples) > 2 and self.samples[1].at <= sample.at - WINDOW_S:  # noqa: PLR2004 - a difference takes two
            self.samples.popleft()

    def rows(self) -> list[Row]:
        """The table now."""
        by_name = rates(self.samples[0], self.samples[-1]) if self.samples else {}
        return views.ordered(views.rows(self.infos, self.services, by_name), self.sort)

    def fleet(self) -> Rates:
        """All of it."""
        return total(self.samples[0], self.samples[-1]) if self.samples else Rates()


def add(parser: ArgumentParser) -> None:
    """Flags of `top`."""
    parser.add_argument("-i", "--interval", type=float, default=1.0, metavar="S", help="between two looks (default: 1)")
    parser.add_argument("-n", "--count", type=int, metavar="N", help="end after so many looks")
    parser.add_argument("--once", action="store_true", help="one look, over one interval")
    parser.add_argument("--by-key", action="store_true", help="who asks, instead of who answers; key k on the screen")
    parser.add_argument("--sort", choices=SORTS, default=SORTS[0], help="(default: busy); key s on the screen")


async def top(call: Call) -> int:
    """Look again and again."""
    watch = TopState(sort=call.args.sort, by_key=call.args.by_key)
    count = 1 if call.args.once else call.args.count
    async with call.connect() as calls:
        await look(calls, call, watch)
        if len(watch.troubles) > 1:
            raise Problem(watch.troubles[0], hint="'svcctl doctor' looks for the cause", code=Code.UNREACHABLE)
        if not call.out.is_rich:
            await repeat(calls, call, watch, count, lambda: show(call, watch))
            return Code.OK
        with live.Live(screen(call, watch), console=call.out.console, screen=True, auto_refresh=False) as shown:

            def draw() -> None:
                shown.update(screen(call, watch), refresh=True)

            def key(typed: str) -> None:
                if typed in "qQ":
                    watch.ended.set()
                elif typed in "sS":
                    watch.sort = SORTS[(SORTS.index(watch.sort) + 1) % len(SORTS)]
                    draw()
                elif typed in "kK":
                    watch.by_key = not watch.by_key
                    draw()

            with pressed(sys.stdin, key):
                draw()
                await repeat(calls, call, watch, count, draw)
    call.out.line(views.headline(watch.rows(), watch.fleet()))
    return Code.OK


async def repeat(calls: Api, call: Call, watch: TopState, count: int | None, draw: Callable[[], None]) -> None:
    """Look and draw, `count` times or until a key ends it."""
    done = 0
    while count is None or done < count:
        with suppress(TimeoutError):
            await asyncio.wait_for(watch.ended.wait(), call.args.interval)
        if watch.ended.is_set():
            return
        await look(calls, call, watch)
        draw()
        done += 1


async def look(calls: Api, call: Call, watch: TopState) -> None:
    """Ask everybody; who does not answer is named, and shown as it was last."""
    router = call.router
    asked = await asyncio.gather(
        calls.get(call.api, "/api/v1/replicas"),
        calls.get(router, "/services"),
        counters(calls, router),
        return_exceptions=True,
    )
    # A registry of an older version has none; one that is away is told of by the replicas.
    with suppress(Problem):
        watch.deployments = answers.items(DeploymentInfo, await calls.get(call.registry, ROOT), "deployments")
    with suppress(Problem):
        traffic = await calls.get(router, "/traffic", params={"since": str(int(time.time()))})
        watch.keys = answers.items(KeyTraffic, traffic, "keys")
    watch.troubles = list(dict.fromkeys(one.message for one in asked if isinstance(one, Problem)))
    for one in asked:
        if isinstance(one, BaseException) and not isinstance(one, Problem):
            raise one
    infos, services, metrics = asked
    if isinstance(infos, dict):
        watch.infos = answers.items(ReplicaInfo, infos, "replicas")
    if isinstance(services, dict):
        watch.services = answers.items(RoutedService, services, "services")
    if isinstance(metrics, CounterSample):
        watch.take(metrics)


async def counters(calls: Api, router: Place) -> CounterSample:
    """The router's counters now.

    Raises:
        Problem: It does not tell them.
    """
    try:
        return read_metrics(await calls.text(router, "/metrics"), time.monotonic())
    except ValueError as error:
        raise Problem(f"the router's metrics cannot be read: {error}") from error


def show(call: Call, watch: TopState) -> None:
    """One look for a pipe."""
    shown = watch.rows()
    if call.out.as_json:
        call.out.entry(views.document(shown, watch.fleet(), watch.troubles, watch.deployments, watch.keys))
        return
    call.out.line(views.headline(shown, watch.fleet()))
    for line in views.awaited(watch.deployments):
        call.out.line(line)
    call.out.table(views.keys(watch.keys) if watch.by_key else views.table(views.folded(shown)))
    for trouble in watch.troubles:
        call.out.note(trouble)


def screen(call: Call, watch: TopState) -> console.RenderableType:
    """One look for a terminal, as many rows as it holds."""
    shown = views.folded(watch.rows())
    awaited = [text.Text(line, "yellow") for line in views.awaited(watch.deployments)]
    room = max(call.out.console.height - FRAME_LINES - len(awaited) - len(watch.troubles), 1)
    title = text.Text("svcctl top", "bold cyan").append("   " + views.headline(shown, watch.fleet()), "bold white")
    rows = len(watch.keys) if watch.by_key else len(shown)
    hidden = f"{rows - room} more {'keys' if watch.by_key else 'replicas'}   " if rows > room else ""
    sort = "by key   k: replicas" if watch.by_key else f"sorted by {watch.sort}   s: sort   k: keys"
    table = views.keys(watch.keys[:room]) if watch.by_key else views.table(shown[:room], call.out.console.width)
    keys = f"{hidden}{sort}   q: quit   every {call.args.interval:g} s, rates over {WINDOW_S:.0f} s"
    troubles = [text.Text(trouble, "bold red") for trouble in watch.troubles]
    return console.Group(
        title,
        *awaited,
        *troubles,
        text.Text(""),
        output.rich_table(table),
        text.Text(""),
        text.Text(keys, "dim"),
    )


COMMANDS = (
    Command(
        "top",
        top,
        add,
        details="Above the table stand deployments that start or have requests waiting, with the time that is left.\n"
        "Rates are the router's, over the last ten seconds. TOK/S are tokens of answers: of a stream its pieces\n"
        "as they come, put right at its end by the usage that it tells. RUN, WAIT, KV and CACHED are what the engines tell, where they do: requests\n"
        "in work and in the engine's queue, how full its KV cache is, and the share of prompt tokens that it found in its\n"
        "prefix cache since it began. In a pipe each look is a table, under --json a document per line.",
        examples=(
            "svcctl top",
            "svcctl top --by-key",
            "svcctl top --once",
            "svcctl top --interval 5 --json | jq .fleet",
        ),
    ),
)
