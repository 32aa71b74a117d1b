"""PURE: what a registry is told: the babysitter's record and the server's, and their heartbeats (docs/contract.md 1 and 4)."""

from collections.abc import Sequence

from msgspec import UNSET, structs

from babysitter import fitting
from babysitter.lifecycle import ReplicaState
from babysitter.view import View
from common.wire.address import bare, url
from common.wire.base import JsonObject, ModelObject
from common.wire.record import Registration, plain_weight
from common.wire.replica import ReplicaHeartbeat
from common.wire.words import RecordKind, RecordStatus

LEASES = 3.0
"""Heartbeats that a lease survives without."""
LEAST_TTL_S = 15.0
UNRECORDED = frozenset({ReplicaState.STOPPED, ReplicaState.FAILED, ReplicaState.PENDING})
"""States in which the server has no record."""


def own_registration(view: View) -> Registration:
    """The babysitter's own record: `NAME` at port + 1."""
    return _registration(
        view,
        name=view.spec.name,
        port=view.spec.addresses.own_port,
        scheme=view.spec.addresses.own_scheme,
        status=RecordStatus.RUNNING,
        metadata={**view.spec.metadata, "type": view.spec.label},
    )


def server_registration(view: View) -> Registration | None:
    """The server's record, `NAME-server`, once its models are known and while it is wanted; else None."""
    if view.settling or not view.models or view.state in UNRECORDED:
        return None
    metadata = {
        **view.spec.metadata,
        "type": RecordKind.SERVER,
        "parent_service": view.spec.name,
        "babysitter_url": view.own_url,
        **({"loadable": list(view.loadable)} if view.loadable else {}),
    }
    return _registration(
        view,
        name=f"{view.spec.name}-server",
        port=view.server_port,
        status=server_status(view),
        metadata={**metadata, **fitting.in_record(view.models, metadata)},
        weight=view.spec.weight,
    )


def server_status(view: View) -> str:
    """`running` while requests are welcome, `draining`, else the contract's word for the state."""
    if view.state is ReplicaState.READY:
        return RecordStatus.RUNNING
    return RecordStatus.DRAINING if view.state in (ReplicaState.DRAINING, ReplicaState.DOZING) else view.status


def own_heartbeat(view: View) -> ReplicaHeartbeat:
    """Heartbeat of the babysitter's own record, which runs for as long as it beats."""
    return _heartbeat(view, RecordStatus.RUNNING)


def server_heartbeat(view: View) -> ReplicaHeartbeat:
    """Heartbeat of the server's record; it has the model objects that were too many for the record."""
    record = server_registration(view)
    too_many = record is not None and "models_list" not in record.metadata
    return _heartbeat(view, server_status(view), fitting.in_report(view.models) if too_many else None)


def _heartbeat(view: View, status: str, models_list: Sequence[ModelObject] | None = None) -> ReplicaHeartbeat:
    """The replica's report, in which `status` is the record's: an ancestor's registry calls any but `running` unhealthy."""
    members = {**structs.asdict(view.report), "status": status, "replica_status": view.report.status}
    if models_list is not None:
        members["models_list"] = list(models_list)
    return fitting.fitting(ReplicaHeartbeat(**members))


def _registration(
    view: View,
    *,
    name: str,
    port: int,
    status: str,
    metadata: JsonObject,
    weight: float | None = None,
    scheme: str = "http",
) -> Registration:
    host = bare(view.spec.addresses.record)
    return Registration(
        name=name,
        host=host,
        hostname=host,
        port=port,
        url=url(host, port, scheme=scheme),
        status=status,
        metadata=metadata,
        weight=UNSET if weight is None else plain_weight(weight),
        timestamp=view.report.updated_at,
        instance_id=view.report.instance_id,
        incarnation=view.report.incarnation,
        ttl_s=max(LEAST_TTL_S, LEASES * view.spec.heartbeat_s),
    )
