"""`svcctl deployments|scale|wake|sleep|delete|templates`: how deployments stand, and what is done to one."""

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError

from common.wire.deployment import DeploymentInfo, ScaleCall, TemplateInfo
from ctl import answers, completers
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.commands.replicas_wait import add_wait_flags
from ctl.deployments import ROOT, add_name, info_of, path_of, post, until_ready
from ctl.problem import Problem
from ctl.views import deployments as views

AUTO = -1
MOST = 1000


def add_show(parser: ArgumentParser) -> None:
    """Flags of `deployments`."""
    add_name(parser, optional=True)
    parser.add_argument("-o", dest="json", choices=("json",), default=SUPPRESS, help="as --json")


def add_scale(parser: ArgumentParser) -> None:
    """Flags of `scale`."""
    add_name(parser)
    parser.add_argument("replicas", metavar="N|auto", type=_count, help="how many; auto: as its rule says")


def add_wake(parser: ArgumentParser) -> None:
    """Flags of `wake`."""
    add_name(parser)
    add_wait_flags(parser, "until it is ready, or cannot start")


def add_templates(parser: ArgumentParser) -> None:
    """Flags of `templates`."""
    name = parser.add_argument("name", metavar="NAME", nargs="?", help="only this one")
    completers.attach(name, completers.templates)


def _count(text: str) -> int:
    if text == "auto":
        return AUTO
    if not text.isascii() or not text.isdigit() or int(text) > MOST:
        raise ArgumentTypeError(f"{text!r} is neither 'auto' nor a number up to {MOST}")
    return int(text)


async def show(call: Call) -> int:
    """All deployments in a table, or one with its replicas."""
    name = call.args.name
    async with call.connect() as calls:
        answer = await (info_of(calls, call, name) if name else calls.get(call.registry, ROOT))
    if call.out.as_json:
        call.out.document(answer)
        return Code.OK
    infos = [answers.read(DeploymentInfo, answer)] if name else views.read_infos(answer)
    if not infos:
        call.out.note("no deployments: 'svcctl run' or 'svcctl apply -f FILE' makes some")
        return Code.OK
    call.out.table(views.table(infos))
    if name and infos[0].replicas:
        call.out.line("")
        call.out.table(views.replicas(infos[0]))
    return Code.OK


async def scale(call: Call) -> int:
    """So many replicas until the next apply, or as the rule says."""
    count = call.args.replicas
    body = ScaleCall(replicas=None if count == AUTO else count)
    return await post(call, "/scale", "as its rule says" if count == AUTO else f"scaled to {count}", body)


async def wake(call: Call) -> int:
    """Start it as a request would."""
    async with call.connect() as calls:
        answer = await calls.call(call.registry, "POST", path_of(call.args.name, "/wake"))
        if call.args.wait:
            await until_ready(call, calls, [call.args.name])
            answer = await info_of(calls, call, call.args.name)
    if call.out.as_json:
        call.out.document(answer)
    elif not call.args.wait:
        call.out.note(f"{call.args.name}: wakes; 'svcctl deployments {call.args.name}' tells how far it is")
    return Code.OK


async def sleep(call: Call) -> int:
    """Let it go now, down to its least."""
    return await post(call, "/sleep", "goes to sleep")


async def delete(call: Call) -> int:
    """Forget it; its replicas are drained and removed."""
    async with call.connect() as calls:
        answer = await calls.call(call.registry, "DELETE", path_of(call.args.name))
    if call.out.as_json:
        call.out.document(answer)
    call.out.note(f"{call.args.name}: deleted; its replicas finish their requests and go", "")
    return Code.OK


async def templates(call: Call) -> int:
    """What agents can make."""
    async with call.connect() as calls:
        answer = await calls.get(call.api, "/api/v1/templates")
    name = call.args.name
    found = [one for one in answers.items(TemplateInfo, answer, "templates") if name in (None, one.name)]
    if name and not found:
        raise Problem(f"no template {name!r}", hint="'svcctl templates' lists them", code=Code.NOT_FOUND)
    if call.out.as_json:
        listed = answer.get("templates")
        kept = [one for one in listed if name in (None, one.get("name"))] if isinstance(listed, list) else []
        call.out.document({**answer, "total": len(kept), "templates": kept})
    elif not found:
        call.out.note("no templates: an agent has them in its templates_dir")
    else:
        call.out.table(views.templates(found))
        if name:
            for line in views.parameter_lines(found[0]):
                call.out.line(line)
    return Code.OK


COMMANDS = (
    Command(
        "deployments",
        show,
        add_show,
        examples=("svcctl deployments", "svcctl deployments qwen", "svcctl deployments -o json"),
    ),
    Command(
        "scale",
        scale,
        add_scale,
        details="Until the next apply that changes it; 'auto' gives it back to its rule.",
        examples=("svcctl scale qwen 2", "svcctl scale qwen auto"),
    ),
    Command(
        "wake",
        wake,
        add_wake,
        examples=("svcctl wake qwen --wait",),
    ),
    Command(
        "sleep",
        sleep,
        add_name,
        details="Down to its least number of replicas. The next request for its model wakes it.",
        examples=("svcctl sleep qwen",),
    ),
    Command(
        "delete",
        delete,
        add_name,
        details="Requests under way are finished first. Replicas made by hand stay.",
        examples=("svcctl delete qwen",),
    ),
    Command(
        "templates",
        templates,
        add_templates,
        examples=("svcctl templates", "svcctl templates vllm --json"),
    ),
)
