"""PURE. A group: one replica of several members, each on a node of its own (docs/adr/0015)."""

from typing import Annotated

from msgspec import Meta

from common.wire.base import Message

MOST_MEMBERS = 64
GROUP_KEY = "group"
"""Member of a replica's and a record's `metadata`: the request id of the leader of its group."""
RANK_KEY = "rank"
"""Member likewise: 0 for the leader."""
BROKEN = "its group is broken"
"""How the error of a member begins that ended for the sake of another."""
Port = Annotated[int, Meta(ge=1, le=65_534)]


class GroupMember(Message, frozen=True, kw_only=True):
    """Where a member is. Its babysitter has the port after `port`; at `rendezvous_port` the leader's server meets the others."""

    rank: Annotated[int, Meta(ge=0, lt=MOST_MEMBERS)]
    node: Annotated[str, Meta(min_length=1, max_length=253)]
    replica_id: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{11}$")]
    host: Annotated[str, Meta(min_length=1, max_length=255)]
    port: Port
    rendezvous_port: Annotated[int, Meta(ge=0, le=65_535)] = 0


class GroupMembers(Message, frozen=True, kw_only=True):
    """Body of `POST /api/v1/replicas/{id}/members`: all members by rank, upon which a reserved one begins."""

    members: Annotated[list[GroupMember], Meta(min_length=2, max_length=MOST_MEMBERS)]
