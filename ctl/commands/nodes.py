"""`svcctl nodes [drain|undrain NODE]`: the nodes with their accelerators, and taking one out for maintenance."""

from argparse import ArgumentParser
from urllib.parse import quote

from common.wire.deployment import NodeInfo
from ctl import answers, completers
from ctl.api import Api
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.problem import Problem
from ctl.views import nodes as views

PATH = "/api/v1/nodes"


def add_nodes(parser: ArgumentParser) -> None:
    """Flags of `nodes`."""
    parser.add_argument("action", nargs="?", choices=("drain", "undrain"), help="what to do; nothing: list them")
    node = parser.add_argument("node", nargs="?", metavar="NODE", help="the node to drain or to take back")
    completers.attach(node, completers.nodes)


async def nodes(call: Call) -> int:
    """List the nodes, or drain one."""
    if call.args.action is not None and call.args.node is None:
        raise Problem(
            f"which node? 'svcctl nodes {call.args.action} NODE'", hint="'svcctl nodes' lists them", code=Code.USAGE
        )
    async with call.connect() as calls:
        return await (show(call, calls) if call.args.action is None else drain(call, calls))


async def show(call: Call, calls: Api) -> int:
    """Print the nodes and their accelerators."""
    answer = await calls.get(call.registry, PATH)
    shown = answers.items(NodeInfo, answer, "nodes")
    if call.out.as_json:
        call.out.document(answer)
    elif not shown:
        call.out.note("no node agent is registered; start one with 'svcctl up', or svc-agent on each node")
    else:
        call.out.table(views.nodes(shown))
        if any(node.accelerators for node in shown):
            call.out.line("")
            call.out.table(views.accelerators(shown))
    return Code.OK


async def drain(call: Call, calls: Api) -> int:
    """Give a node no new replicas, or give it some again."""
    name, on = call.args.node, call.args.action == "drain"
    answer = await calls.call(call.registry, "POST", f"{PATH}/{quote(name, safe='')}/{call.args.action}")
    if call.out.as_json:
        call.out.document(answer)
    held = answers.read(NodeInfo, answer).live
    if on:
        call.out.note(f"{name}: drains; it gets no new replicas, and has {held} ('svcctl nodes undrain {name}')", "")
    else:
        call.out.note(f"{name}: gets replicas again", "")
    return Code.OK


COMMANDS = (
    Command(
        "nodes",
        nodes,
        add_nodes,
        details="A drained node gets no new replicas, and deployments move theirs elsewhere. Replicas that were made by "
        "hand stay until you stop them.",
        examples=("svcctl nodes", "svcctl nodes --json", "svcctl nodes drain gpu-3", "svcctl nodes undrain gpu-3"),
    ),
)
