"""Members of groups at their agent: where one was reserved, and how it begins once all are known (docs/adr/0015)."""

import asyncio
from functools import cache
from http import HTTPStatus

import msgspec

from babysitter.agent.controller import ReplicaController
from babysitter.agent.manager import ReplicaManager
from babysitter.agent.model import Desired, ReplicaRecord
from babysitter.agent.requests import wrong
from babysitter.agent.settings import AgentSettings
from babysitter.agent.slurm.place import LIMIT_BYTES, RECIPE
from babysitter.agent.store import FULL
from babysitter.agent.template_request import read_recipe
from babysitter.assemble import WILDCARDS, full_name
from babysitter.group import MEMBERS
from babysitter.settings import RENDERED
from common.atomic_file import read_bounded
from common.http.errors import ApiError
from common.names import bind_address, is_host
from common.wire.base import JsonObject
from common.wire.group import GroupMember, GroupMembers

_full_name = cache(full_name)


def member_of(record: ReplicaRecord, settings: AgentSettings) -> GroupMember | None:
    """Where a member is, as others reach it; None for what is no member. May ask a name server."""
    if record.group is None:
        return None
    address = bind_address(settings.servers_host)
    return GroupMember(
        rank=record.group[0],
        node=settings.node,
        replica_id=record.replica_id,
        host=settings.advertise_host or (_full_name() if address in WILDCARDS else address),
        port=record.port,
        rendezvous_port=record.rendezvous_port,
    )


async def begin(manager: ReplicaManager, controller: ReplicaController, body: JsonObject) -> None:
    """Start a member that was reserved, which has begun when this returns; a repeat changes nothing.

    Raises:
        ApiError: 422 for a list that is not its group's, 409 when it is no member, has begun with another list or is over, 507.
    """
    record = controller.record
    own = await asyncio.to_thread(member_of, record, manager.settings)
    if record.group is None or own is None:
        raise ApiError(HTTPStatus.CONFLICT, f"replica {record.replica_id} is no member of a group")
    members = _judged(body, own, record.group[1])
    content = msgspec.json.encode(GroupMembers(members=members))
    if record.begun and await asyncio.to_thread(_read, controller, MEMBERS) != content:
        raise ApiError(HTTPStatus.CONFLICT, f"replica {record.replica_id} has begun with other members")
    if record.begun:
        return
    if record.desired is not Desired.RUNNING or record.fault is not None:
        raise ApiError(HTTPStatus.CONFLICT, f"replica {record.replica_id} is {controller.info().status}")
    recipe = read_recipe(await asyncio.to_thread(_read, controller, RECIPE))
    rendered = recipe.rendered(
        host=bind_address(manager.settings.servers_host),
        port=record.port,
        accelerators=len(record.accelerators),
        rank=own.rank,
        members=members,
    )
    try:
        await controller.begin({MEMBERS: content, RENDERED: rendered})
    except OSError as error:
        status = HTTPStatus.INSUFFICIENT_STORAGE if error.errno in FULL else HTTPStatus.INTERNAL_SERVER_ERROR
        raise ApiError(status, f"its files cannot be written: {error.strerror or error}") from error


def _judged(body: JsonObject, own: GroupMember, size: int) -> list[GroupMember]:
    """The members in a body, by rank.

    Raises:
        ApiError: 422.
    """
    try:
        members = msgspec.convert(body, GroupMembers).members
    except msgspec.ValidationError as error:
        raise wrong("members", str(error)) from error
    if [one.rank for one in members] != list(range(size)):
        raise wrong("members", f"must be the ranks 0 to {size - 1}, in this order")
    if members[own.rank] != own:
        raise wrong(
            f"members.{own.rank}", f"is not where this member is: {own.host}:{own.port} of replica {own.replica_id}"
        )
    if bad := next((one.host for one in members if not is_host(one.host)), None):
        raise wrong("members", f"{bad!r} is no host")
    return members


def _read(controller: ReplicaController, name: str) -> bytes:
    return read_bounded(controller.directory / name, limit_bytes=LIMIT_BYTES)
