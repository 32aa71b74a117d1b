"""`svcctl replicas list|get`: what there is."""

import time
from argparse import ArgumentParser

from common.wire.replica import ReplicaInfo
from common.wire.words import ReplicaStatus
from ctl import answers, completers
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.convert import MODES
from ctl.follow import info_of
from ctl.views import replicas as views

STATUSES = [status.value for status in ReplicaStatus if status is not ReplicaStatus.UNKNOWN]


def add_list(parser: ArgumentParser) -> None:
    """Filters of `list`."""
    parser.add_argument("--status", choices=STATUSES, metavar="STATUS", help=", ".join(STATUSES))
    parser.add_argument("--model", metavar="NAME", help="only replicas of this model")
    parser.add_argument("--mode", choices=MODES, metavar="MODE", help="only replicas of this server_mode")


def add_id(parser: ArgumentParser) -> None:
    """The replica."""
    replica = parser.add_argument("id", metavar="ID", help="the replica, as 'svcctl replicas list' names it")
    completers.attach(replica, completers.replicas)


async def listing(call: Call) -> int:
    """Print the replicas."""
    args = call.args
    filters = {"status": args.status, "model_name": args.model, "server_mode": args.mode}
    params = {name: value for name, value in filters.items() if value}
    if not call.out.as_json:  # the status of a group is that of all its members
        params.pop("status", None)
    async with call.connect() as calls:
        answer = await calls.get(call.api, "/api/v1/replicas", params=params)
    replicas = views.whole_ones(answers.items(ReplicaInfo, answer, "replicas"), args.status)
    if call.out.as_json:
        call.out.document(answer)
    elif replicas:
        call.out.table(views.listed(replicas, time.time()))
    else:
        call.out.note(
            "no replicas" + (" like that" if any(filters.values()) else "; make one with 'svcctl replicas create'")
        )
    return Code.OK


async def get(call: Call) -> int:
    """Print everything about one."""
    async with call.connect() as calls:
        info = await info_of(calls, call.api, call.args.id)
    if call.out.as_json:
        call.out.document(info)
    else:
        call.out.table(views.one(info))
    return Code.FAILED if info.get("status") == ReplicaStatus.FAILED else Code.OK


COMMANDS = (
    Command(
        "replicas list",
        listing,
        add_list,
        details="JOBS counts the cluster's compile and execute jobs. A group is one replica: below it stand the others of its\n"
        "members; --json has each member by itself, with `group` and `rank` in its metadata.",
        examples=(
            "svcctl replicas list",
            "svcctl replicas list --status ready --json | jq -r '.replicas[].replica_id'",
        ),
    ),
    Command(
        "replicas get",
        get,
        add_id,
        details="Exit code 1 when it has failed.",
        examples=("svcctl replicas get abc123def456", "svcctl replicas get abc123def456 --json | jq .endpoint"),
    ),
)
