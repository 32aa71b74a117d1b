"""PURE. Leases of keys' budgets: what a router's workers hold and used of each limit, and what they are granted (docs/adr/0016).

By key and by unit: `requests`, `tokens`, `in_flight`. All counts are of that unit, times seconds.
"""

from typing import Annotated, TypeAlias

import msgspec

from common.wire.base import Message

REQUESTS, TOKENS, IN_FLIGHT = "requests", "tokens", "in_flight"
Amount: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=10**15)]
HOLDERS_MOST = 512
"""Workers of one router, those that drain too."""


class LeaseRow(Message, frozen=True, kw_only=True):
    """What one worker has of one limit of one key.

    Args:
        held: Granted and not used yet; of requests under way what they may use.
        used: Since the worker began.
        told: How much of that an answer has confirmed.
        need: What requests that wait for it lack.
        want: What it would like, `need` included.
    """

    held: Amount = 0
    used: Amount = 0
    told: Amount = 0
    need: Amount = 0
    want: Amount = 0


class LeaseGrant(Message, frozen=True, kw_only=True):
    """The answer to a row.

    Args:
        granted: On top of what is held.
        left: What nobody holds and nobody has used.
        limit: Of the window that has the least left.
        full_in_s: Until nothing of that is used any more.
        again_in_s: When what was needed, and is not granted, may be there; 0: it is granted.
    """

    granted: Amount = 0
    left: Amount = 0
    limit: Amount = 0
    full_in_s: float = 0.0
    again_in_s: float = 0.0


LeaseRows: TypeAlias = dict[str, dict[str, LeaseRow]]
LeaseGrants: TypeAlias = dict[str, dict[str, LeaseGrant]]
"""By key, then by unit."""


class LeaseCall(Message, frozen=True, kw_only=True):
    """`POST /v1/routers/{name}/leases`.

    Args:
        session: One life of the router's master.
        holders: By worker.
        recent: What the router used in the last minute, by key and unit, for a registry that has not heard of it.
    """

    session: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    holders: Annotated[dict[str, LeaseRows], msgspec.Meta(max_length=HOLDERS_MOST)] = {}
    recent: dict[str, dict[str, Amount]] = {}


class LeaseAnswer(Message, frozen=True, kw_only=True):
    """How many routers share the limits, and what was granted, by worker."""

    routers: int
    holders: dict[str, LeaseGrants]
