"""`svcctl rollout status|pause|resume|undo`: how a change comes to a deployment's replicas."""

from argparse import ArgumentParser

from common.wire.deployment import DeploymentInfo, UndoCall
from ctl import answers
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.commands.replicas_wait import add_wait_flags
from ctl.deployments import add_name, info_of, post, until_ready
from ctl.views import deployments as views


def add_status(parser: ArgumentParser) -> None:
    """Flags of `status`."""
    add_name(parser)
    add_wait_flags(parser, "until the newest revision is ready")


def add_undo(parser: ArgumentParser) -> None:
    """Flags of `undo`."""
    add_name(parser)
    parser.add_argument("--to", type=int, metavar="N", help="the revision (default: the one before)")


async def status(call: Call) -> int:
    """The revisions, and how many replicas run each."""
    name = call.args.name
    async with call.connect() as calls:
        if call.args.wait:
            await until_ready(call, calls, [name], may_be_cold=True)
        answer = await info_of(calls, call, name)
    if call.out.as_json:
        call.out.document(answer)
        return Code.OK
    info = answers.read(DeploymentInfo, answer)
    paused = ", paused" if info.paused else ""
    call.out.line(f"{name}: {views.stage(info)}{paused}, {info.ready} of {info.wanted} ready, revision {info.revision}")
    call.out.table(views.revisions(info))
    return Code.OK


async def pause(call: Call) -> int:
    """Let a rollout stand still."""
    return await post(call, "/pause", "its rollout stands still")


async def resume(call: Call) -> int:
    """Let it go on."""
    return await post(call, "/resume", "its rollout goes on")


async def undo(call: Call) -> int:
    """Return to an earlier revision, as a new one."""
    goal = call.args.to
    said = "rolls back" if goal is None else f"rolls back to what revision {goal} was"
    return await post(call, "/undo", said, UndoCall(revision=goal))


COMMANDS = (
    Command(
        "rollout status",
        status,
        add_status,
        examples=("svcctl rollout status qwen", "svcctl rollout status qwen --wait"),
    ),
    Command("rollout pause", pause, add_name, examples=("svcctl rollout pause qwen",)),
    Command("rollout resume", resume, add_name, examples=("svcctl rollout resume qwen",)),
    Command(
        "rollout undo",
        undo,
        add_undo,
        details="The last ten are kept. The one returned to becomes a new revision, and rolls like any change.",
        examples=("svcctl rollout undo qwen", "svcctl rollout undo qwen --to 3"),
    ),
)
