"""PURE. Tokens for people: what routers tell the registry, and what it answers (docs/usage.md)."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from common.tokens import ROWS_MOST
from common.wire.base import Message

_Text = Annotated[str, Meta(max_length=256)]
_Count = Annotated[int, Meta(ge=0, le=10**15)]
UsageLine = tuple[_Text, _Text, _Text, tuple[_Count, _Count, _Count, _Count, _Count, _Count]]
"""Key, model, replica, and counts in the order of `common.tokens.FIELDS`."""


class UsageBatch(Message, frozen=True, kw_only=True):
    """Body of `POST /v1/routers/{name}/usage`: what a router counted in one hour, since its last batch.

    Args:
        writer: Who numbers batches: one life of the router.
        sequence: The batch's number, which rises; one that is sent again has the same, and counts once.
        hour: Hours since the epoch, UTC.
    """

    writer: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    sequence: Annotated[int, Meta(ge=1, le=2**53)]
    hour: Annotated[int, Meta(ge=0, le=10**7)]
    rows: Annotated[list[UsageLine], Meta(max_length=ROWS_MOST + 1)]


class UsageTaken(Message, frozen=True, kw_only=True):
    """Its answer: `counted` now or before, or its hour is too far from the registry's present `hour`, under which to send it."""

    result: Literal["counted", "wrong_hour"]
    hour: int


class UsageCounts(Message, frozen=True, kw_only=True):
    """Requests, and their tokens. `cached` are of the prompts', `reasoning` and `estimated` of the completions'."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    estimated_tokens: int = 0


class UsageRow(UsageCounts, frozen=True, kw_only=True):
    """One line of a report; it has the members that it was asked to be split by. `at`: when its hour or day begins, ISO 8601."""

    at: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    replica: str | UnsetType = UNSET


class UsageReport(Message, frozen=True, kw_only=True):
    """`GET /api/v1/usage`, and of one key `GET /v1/usage` at a router; whole hours from `since` to `until`."""

    since: str
    until: str
    rows: list[UsageRow]
    total: UsageCounts
