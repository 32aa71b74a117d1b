"""Replica reports (docs/contract.md 4): kept as text, and what they say of a record's status. PURE.

Ten thousand reports as Python objects are a quarter of a million objects; every heartbeat would walk through cold
memory to compare and to free some. As text a report is one object, and is compared by its bytes.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from registry.core.model import Instance, Renew, Report

VOLATILE_FIELDS = ("running", "waiting", "updated_at")
"""Members that change with every heartbeat: shown and streamed, never written to a store."""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def make_report(body: Mapping[str, Any]) -> Report:
    """The report in a heartbeat's body.

    There `status` is the record's; the replica's own is `replica_status`, and `status` of babysitters that know no such
    member. `draining` is a record's word, and none of the replica API (docs/contract.md 7).
    """
    lasting = dict(body)
    own = lasting.pop("replica_status", None)
    if isinstance(own, str):
        lasting["status"] = own
    if lasting.get("status") == "draining":
        lasting["status"] = "stopping"
    passing = {name: lasting.pop(name) for name in VOLATILE_FIELDS if name in lasting}
    replica_id = lasting.get("replica_id")
    return Report(_encode(lasting), _encode(passing), replica_id if isinstance(replica_id, str) else None)


def read_report(report: Report) -> dict[str, Any]:
    """All members of a report."""
    return {**_decode(report.lasting), **_decode(report.passing)}


def lasting(report: Report | None) -> bytes | None:
    """The part of a report that is worth writing down."""
    return None if report is None else report.lasting


def service_status(held: Instance, beat: Renew) -> str:
    """The record's status after a heartbeat.

    A replica report speaks of the replica: its `ready` is a server's `running`, and it says nothing of a babysitter's
    own record, which runs for as long as it beats. Any other status is taken as given.
    """
    if beat.status is None:
        return held.registration.status
    if beat.report is None or beat.report.replica_id is None:
        return beat.status
    if held.kind != "openai-api":
        return held.registration.status
    return "running" if beat.status == "ready" else beat.status
