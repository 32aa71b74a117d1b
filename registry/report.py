"""Replica reports (CONTRACT.md 4): what of them moves all the time, and what they say of a record's status. PURE."""

from collections.abc import Mapping
from typing import Any

from registry.model import Instance, Renew

VOLATILE_FIELDS = frozenset({"running", "waiting", "updated_at"})
"""Members that change with every heartbeat: shown and streamed, never written to a store."""


def stable(report: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """A report without its volatile members."""
    return {key: value for key, value in (report or {}).items() if key not in VOLATILE_FIELDS}


def differs_lastingly(after: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> bool:
    """True when the stable part of a report changed."""
    if after is None or before is None or after.keys() != before.keys():
        return stable(after) != stable(before)
    return any(value != before[key] and key not in VOLATILE_FIELDS for key, value in after.items())


def service_status(held: Instance, beat: Renew) -> str:
    """The record's status after a heartbeat.

    A replica report speaks of the replica: its `ready` is a server's `running`, and it says nothing of a babysitter's
    own record, which runs for as long as it beats. Any other status is taken as given.
    """
    if beat.status is None:
        return held.registration.status
    if beat.report is None or "replica_id" not in beat.report:
        return beat.status
    if held.kind != "openai-api":
        return held.registration.status
    return "running" if beat.status == "ready" else beat.status
