"""PURE. The audit: who changed what."""

from msgspec import UNSET, UnsetType

from common.wire.base import Message


class AuditLine(Message, frozen=True, kw_only=True):
    """One call that was to change something, as it stands in a file and in an answer.

    Args:
        time: When it was answered, in ISO 8601.
        service: Who was called: `registry`, `router`, `agent NODE`, `babysitter NAME`.
        who: The token's role, the key's name, the certificate's, or the user of this machine; `anybody` where none is known.
        remote: The address that the call came from.
        method: HTTP's.
        path: With what it names, without a query.
        status: Of the answer.
        request_id: What the caller, or the router, named the call.
    """

    time: str
    service: str
    who: str
    remote: str
    method: str
    path: str
    status: int
    request_id: str | UnsetType = UNSET


class AuditList(Message, frozen=True, kw_only=True):
    """The latest lines, the oldest first; `missing` are nodes whose agents could not be asked."""

    total: int
    lines: list[AuditLine]
    missing: list[str] = []
