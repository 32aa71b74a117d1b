"""PURE. What every control plane answers when it does not do what it was asked."""

from msgspec import UNSET, UnsetType

from common.wire.base import Message

NO_ACCELERATORS = "no_accelerators"
"""`code` of an agent's refusal: its node lacks them, for now (503) or for ever (422); another may have them."""

CANNOT_SLEEP = "cannot_sleep"
"""`code` of a babysitter's refusal: its server does not sleep, whoever asks; it can only be stopped."""


class FieldFault(Message, frozen=True, kw_only=True):
    """What is wrong with one member of a body."""

    field: str
    problem: str


class ErrorBody(Message, frozen=True, kw_only=True):
    """Body of every refusal.

    Args:
        error: For people: what is wrong, and the remedy.
        field: The member or parameter at fault, the first of several.
        details: Every member at fault.
        detail: The same as `error` in the replica API, where clients of the release server look for it.
        upstream_status: What a router or a babysitter answered that was asked on the caller's behalf.
        code: A word for programs, where a status alone does not tell them what to do.
    """

    error: str
    field: str | UnsetType = UNSET
    details: list[FieldFault] | UnsetType = UNSET
    detail: str | UnsetType = UNSET
    upstream_status: int | UnsetType = UNSET
    code: str | UnsetType = UNSET
