"""Replica reports (docs/contract.md 4): kept as text, and what they say of a record's status. PURE.

Ten thousand reports as Python objects are a quarter of a million objects; every heartbeat would walk through cold
memory to compare and to free some. As text a report is one object, and is compared by its bytes.
"""

from collections.abc import Mapping

import msgspec

from common.wire.replica import PASSING
from common.wire.words import RecordKind, RecordStatus, ReplicaStatus
from registry.core.model import Instance, Renew, Report

_encode = msgspec.json.Encoder().encode


def make_report(body: Mapping[str, object]) -> Report:
    """The report in a heartbeat's body.

    There `status` is the record's; the replica's own is `replica_status`, and `status` of babysitters that know no such
    member. `draining` is a record's word, and none of the replica API (docs/contract.md 7).
    """
    lasting = dict(body)
    own = lasting.pop("replica_status", None)
    if isinstance(own, str):
        lasting["status"] = own
    if lasting.get("status") == RecordStatus.DRAINING:
        lasting["status"] = ReplicaStatus.STOPPING.value
    passing = {name: lasting.pop(name) for name in PASSING if name in lasting}
    return Report(
        _encode(lasting),
        _encode(passing) if passing else b"{}",
        _text(lasting.get("replica_id")),
        _text(lasting.get("status")),
        _text(passing.get("updated_at")),
        _text(lasting.get("request_id")),
    )


def _text(member: object) -> str | None:
    return member if isinstance(member, str) else None


def report_text(report: Report) -> bytes:
    """Both parts of a report as one JSON object."""
    if report.passing == b"{}":
        return report.lasting
    return report.passing if report.lasting == b"{}" else report.lasting[:-1] + b"," + report.passing[1:]


def lasting(report: Report | None) -> bytes | None:
    """The part of a report that is worth writing down."""
    return None if report is None else report.lasting


def service_status(instance: Instance, beat: Renew) -> str:
    """The record's status after a heartbeat.

    A replica report speaks of the replica: its `ready` is a server's `running`, and it says nothing of a babysitter's
    own record, which runs for as long as it beats. Any other status is taken as it is.
    """
    if beat.status is None:
        return instance.registration.status
    if beat.report is None or beat.report.replica_id is None:
        return beat.status
    if instance.kind != RecordKind.SERVER:
        return instance.registration.status
    return RecordStatus.RUNNING if beat.status == ReplicaStatus.READY else beat.status
