"""`svcctl down`: end what `up` or the launch scripts started here, and nothing else."""

from argparse import ArgumentParser

from ctl.api import Place
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.launcher import processes, stop
from ctl.launcher.plan import AGENT
from ctl.launcher.state_dir import Launched, StateDir


def add(parser: ArgumentParser) -> None:
    """Flags of `down`."""
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="only these: the name of 'svcctl status', a port, a server"
    )
    parser.add_argument("--replicas", action="store_true", help="also stop every replica of the agent")
    parser.add_argument(
        "--timeout", type=float, default=90.0, metavar="S", help="before what is left is killed (default: 90)"
    )


async def down(call: Call) -> int:
    """End it, in the order of `stop.ORDER`."""
    state = StateDir(call.state_dir)
    words = call.args.names
    chosen = [one for one in state.all() if not words or any(one.is_called(word) for word in words)]
    if not chosen:
        call.out.note("nothing of that runs" if words else f"nothing was started from {state.root}")
        if call.out.as_json:
            call.out.document({"stopped": []})
        return Code.NOT_FOUND if words else Code.OK
    ended: list[dict[str, str]] = []

    def say(launched: Launched, how: str) -> None:
        ended.append({"name": launched.name, "how": how})
        call.out.note(f"{launched.name}: {how}" + (f" (pid {launched.pid})" if launched.pid else ""), "")

    clean = True
    async with state.locked():
        for kind in stop.ORDER:
            group = [launched for launched in chosen if launched.kind == kind]
            if kind == AGENT and group and processes.find(group[0]) is not None:
                await replicas(call, group[0])
            clean = processes.end(group, state, call.args.timeout, say) and clean
    if call.out.as_json:
        call.out.document({"stopped": ended})
    return Code.OK if clean else Code.FAILED


async def replicas(call: Call, agent: Launched) -> None:
    """Stop the agent's replicas when asked to; else say that they go on: they are made to outlive it."""
    place = Place("the agent", (agent.url,), "--api-url", call.api.token)
    async with call.connect() as calls:
        if call.args.replicas:
            await stop.stop_replicas(calls, place, call.args.timeout, lambda text: call.out.note(text, ""))
        elif count := await stop.count_replicas(calls, place):
            call.out.note(f"{count} replica(s) of the agent go on; 'svcctl up' finds them again")


COMMANDS = (
    Command(
        "down",
        down,
        add,
        details="Babysitters with their servers first, then agent, router and registry. A pid alone is not believed:\n"
        "a process that was not launched here is never touched. Replicas made by the agent go on unless --replicas.",
        examples=("svcctl down", "svcctl down babysitter_8100", "svcctl down --replicas"),
    ),
)
