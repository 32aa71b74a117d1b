"""`svcctl replicas stop|retry|sleep|wake`: end replicas, let a failed one begin again, let one sleep."""

from argparse import ArgumentParser

from common.wire.replica import ReplicaInfo
from common.wire.words import ReplicaStatus
from ctl import answers, completers
from ctl.api import Api
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.commands.replicas_wait import add_wait_flags, until
from ctl.follow import path_of
from ctl.problem import Problem

STOP_TIMEOUT_S = 60.0


def add_stop(parser: ArgumentParser) -> None:
    """Flags of `stop`."""
    ids = parser.add_argument("ids", metavar="ID", nargs="*", help="replicas")
    completers.attach(ids, completers.replicas)
    parser.add_argument("--all", action="store_true", help="every replica of the fleet")
    parser.add_argument("--delete", action="store_true", help="remove its directory and logs as well")
    parser.add_argument("--force", action="store_true", help="neither drain nor wait: requests under way are lost")
    add_wait_flags(parser, "until they are stopped")


def add_retry(parser: ArgumentParser) -> None:
    """Flags of `retry`."""
    ids = parser.add_argument("ids", metavar="ID", nargs="+", help="failed replicas")
    completers.attach(ids, completers.replicas)
    add_wait_flags(parser, "until they are ready, or have failed again")


def add_sleep(parser: ArgumentParser) -> None:
    """Flags of `sleep`."""
    _add_ids(parser)


def add_wake(parser: ArgumentParser) -> None:
    """Flags of `wake`."""
    _add_ids(parser)
    add_wait_flags(parser, "until they are ready")


def _add_ids(parser: ArgumentParser) -> None:
    completers.attach(parser.add_argument("ids", metavar="ID", nargs="+", help="replicas"), completers.replicas)


async def stop(call: Call) -> int:
    """Stop replicas; one that cannot be stopped does not keep the others running."""
    async with call.connect() as calls:
        ids = await chosen(calls, call)
        replies: list[object] = []
        if call.args.force or not call.args.delete:
            replies = await each(calls, call, ids, ("POST", "/stop"), {"force": call.args.force})
        if call.args.delete:
            replies = await each(calls, call, ids, ("DELETE", ""))
        if call.args.wait and ids:
            return await until(call, calls, ids, "stopped")
    if call.out.as_json:
        call.out.document(replies)
    return Code.OK


async def retry(call: Call) -> int:
    """Let failed replicas begin again."""
    return await _tell(call, "retry")


async def sleep(call: Call) -> int:
    """Let replicas sleep."""
    return await _tell(call, "sleep")


async def wake(call: Call) -> int:
    """Wake replicas."""
    return await _tell(call, "wake")


async def _tell(call: Call, verb: str) -> int:
    async with call.connect() as calls:
        replies = await each(calls, call, call.args.ids, ("POST", f"/{verb}"))
        if verb != "sleep" and call.args.wait:
            return await until(call, calls, call.args.ids, "ready")
    if call.out.as_json:
        call.out.document(replies)
    return Code.OK


async def chosen(calls: Api, call: Call) -> list[str]:
    """The replicas meant.

    Raises:
        Problem: None were named.
    """
    if call.args.all:
        infos = answers.items(ReplicaInfo, await calls.get(call.api, "/api/v1/replicas"), "replicas")
        return [info.replica_id for info in infos if call.args.delete or info.status is not ReplicaStatus.STOPPED]
    if not call.args.ids:
        raise Problem("which replicas?", hint="name them, or give --all", code=Code.USAGE)
    return list(call.args.ids)


async def each(
    calls: Api, call: Call, ids: list[str], action: tuple[str, str], body: dict[str, bool] | None = None
) -> list[object]:
    """One call for each replica, `action` being its method and the end of its path; the first problem is raised last.

    Raises:
        Problem: A replica could not be told.
    """
    replies: list[object] = []
    problems = []
    for replica_id in ids:
        try:
            method, rest = action
            answer = await calls.call(call.api, method, path_of(replica_id, rest), body=body, timeout_s=STOP_TIMEOUT_S)
        except Problem as problem:
            problems.append(problem)
            continue
        replies.append(answer)
        call.out.note(f"{replica_id}: {answer.get('message') or answer.get('status')}", "")
    if problems:
        raise problems[0]
    return replies


COMMANDS = (
    Command(
        "replicas stop",
        stop,
        add_stop,
        details="Requests under way are finished first, unless --force. The directory and its logs stay, unless --delete.",
        examples=(
            "svcctl replicas stop abc123def456 --wait",
            "svcctl replicas stop abc123def456 --delete",
            "svcctl replicas stop --all --delete --wait --timeout 300",
        ),
    ),
    Command(
        "replicas retry",
        retry,
        add_retry,
        examples=("svcctl replicas retry abc123def456 --wait",),
    ),
    Command(
        "replicas sleep",
        sleep,
        add_sleep,
        details="Requests under way are finished first. A deployment's replica is woken by its next request.",
        examples=("svcctl replicas sleep abc123def456",),
    ),
    Command(
        "replicas wake",
        wake,
        add_wake,
        examples=("svcctl replicas wake abc123def456 --wait",),
    ),
)
