"""PURE: one picture of the replica, and the records, reports and answers that are made from it (docs/contract.md 3 to 5)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from babysitter import fitting
from babysitter.lifecycle import ReplicaState, display_status, wire_status
from common.wire.record import plain_weight

LEASES = 3.0
"""Heartbeats that a lease survives without."""
LEAST_TTL_S = 15.0
SERVER_STATUS = {ReplicaState.READY: "running", ReplicaState.DRAINING: "draining"}


@dataclass(frozen=True, slots=True)
class View:
    """Everything that others may know about the replica at one moment.

    `host` stands in the records; `local_host` is where this machine reaches the server, `endpoint_host` where clients
    do; `port` is the server's, `own_port` the babysitter's; `models` are the server's own model objects; times are ISO 8601 UTC.
    `registration_error` is why a registry refuses a record.
    `need_restart` names settings whose value in the file is not yet in force, `config_refused` tells what is wrong with the
    file. `settling` is true from an adoption to the first look: the last babysitter's record is then better left as it is.
    """

    name: str
    label: str
    host: str
    port: int
    own_port: int
    state: ReplicaState
    instance_id: str
    incarnation: int
    heartbeat_s: float
    created_at: str
    updated_at: str
    status_since: str
    local_host: str | None = None
    endpoint_host: str | None = None
    ready_at: str | None = None
    models: tuple[Mapping[str, Any], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    weight: float | None = None
    restart_count: int = 0
    replica_pid: int | None = None
    workdir: str | None = None
    venv_path: str | None = None
    error_message: str | None = None
    next_restart_at: str | None = None
    stalled: bool = False
    late: bool = False
    need_restart: tuple[str, ...] = ()
    config_refused: str | None = None
    persist_failed: str | None = None
    registration_error: str | None = None
    compile_wsjob: tuple[str, ...] = ()
    execute_wsjob: tuple[str, ...] = ()
    serves: bool = False
    settling: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base_url(self) -> str:
        """Where the server is asked by whoever stands beside it."""
        return url(self.local_host or self.host, self.port)

    @property
    def own_url(self) -> str:
        """Where others ask the babysitter."""
        return url(self.host, self.own_port)

    @property
    def endpoint(self) -> str:
        """Where clients reach the server; `NA` until it is ready."""
        ready = self.state in (ReplicaState.READY, ReplicaState.DRAINING)
        return url(self.endpoint_host or self.host, self.port) if ready else "NA"

    @property
    def model_ids(self) -> list[str]:
        """Ids of the models served."""
        return fitting.names(self.models)

    @property
    def trouble(self) -> str | None:
        """What is wrong: with the server, else with its registration."""
        if self.error_message is not None or self.registration_error is None:
            return self.error_message
        return f"not registered: {self.registration_error}"

    @property
    def status(self) -> str:
        """The contract's word."""
        return wire_status(self.state)


def own_registration(view: View) -> dict[str, Any]:
    """The babysitter's own record: `NAME` at port + 1."""
    return {
        **_identity(view),
        "name": view.name,
        "port": view.own_port,
        "url": view.own_url,
        "status": "running",
        "metadata": {**view.metadata, "type": view.label},
    }


def server_registration(view: View) -> dict[str, Any] | None:
    """The server's record, `NAME-server`, once its models are known and while it is wanted; else None."""
    if (
        view.settling
        or not view.models
        or view.state in (ReplicaState.STOPPED, ReplicaState.FAILED, ReplicaState.PENDING)
    ):
        return None
    rest = {
        **view.metadata,
        "type": "openai-api",
        "parent_service": view.name,
        "babysitter_url": view.own_url,
    }
    metadata = {**rest, **fitting.in_record(view.models, rest)}
    weight = {} if view.weight is None else {"weight": plain_weight(view.weight)}
    return {
        **_identity(view),
        **weight,
        "name": f"{view.name}-server",
        "port": view.port,
        "url": url(view.host, view.port),
        "status": server_status(view),
        "metadata": metadata,
    }


def server_status(view: View) -> str:
    """`running` while requests are welcome, `draining`, else the contract's word for the state."""
    return SERVER_STATUS.get(view.state, view.status)


def own_heartbeat(view: View) -> dict[str, Any]:
    """Heartbeat body of the babysitter's own record, which runs for as long as it beats."""
    return _heartbeat(view, "running", {})


def server_heartbeat(view: View) -> dict[str, Any]:
    """Heartbeat body of the server's record; it has the model objects that were too many for the record."""
    record = server_registration(view)
    told = record is not None and "models_list" not in record["metadata"]
    return _heartbeat(view, server_status(view), {"models_list": fitting.in_report(view.models)} if told else {})


def _heartbeat(view: View, status: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """The replica's report, in which `status` is the record's: an ancestor's registry calls any but `running` unhealthy."""
    said = report(view)
    return fitting.fitting({**said, **more, "status": status, "replica_status": said["status"]})


def report(view: View) -> dict[str, Any]:
    """The replica report (docs/contract.md 4)."""
    return {
        "replica_id": view.name,
        "instance_id": view.instance_id,
        "incarnation": view.incarnation,
        "status": view.status,
        "display_status": display_status(view.state),
        "endpoint": view.endpoint,
        "base_url": view.base_url,
        "port": view.port,
        "workdir": view.workdir,
        "venv_path": view.venv_path,
        "replica_pid": view.replica_pid,
        "restart_count": view.restart_count,
        "compile_wsjob": list(view.compile_wsjob),
        "execute_wsjob": list(view.execute_wsjob),
        "models": view.model_ids,
        "created_at": view.created_at,
        "ready_at": view.ready_at,
        "updated_at": view.updated_at,
        "status_since": view.status_since,
        "error_message": view.trouble,
        "registration_error": view.registration_error,
        "next_restart_at": view.next_restart_at,
        "stalled": view.stalled,
        "late": view.late,
        "state_persist_failed": view.persist_failed,
        **_settings(view),
        **view.extra,
    }


def health(view: View, timestamp: str) -> dict[str, Any]:
    """Answer of `GET /health`. A server that serves and that no registry takes is `unregistered`: no router finds it."""
    well = "healthy" if view.registration_error is None else "unregistered"
    return {
        "status": well if view.state is ReplicaState.READY else view.status,
        "service": view.name,
        "babysitter": "running",
        "infinilm_server_running": view.serves,
        "infinilm_server_port": view.port,
        "timestamp": timestamp,
        "display_status": display_status(view.state),
        "restart_count": view.restart_count,
        "error_message": view.trouble,
        "registration_error": view.registration_error,
        "next_restart_at": view.next_restart_at,
        "stalled": view.stalled,
        "late": view.late,
        **_settings(view),
        "state_persist_failed": view.persist_failed,
    }


def info(view: View, *, uptime_s: float, router_url: str | None) -> dict[str, Any]:
    """Answer of `GET /info`."""
    return {
        "service": view.name,
        "babysitter": "running",
        "name": view.name,
        "host": view.host,
        "port": view.own_port,
        "url": view.own_url,
        "service_type": view.label,
        "metadata": dict(view.metadata),
        "router_url": router_url,
        "infinilm_server_port": view.port,
        "uptime": uptime_s,
        "restart_count": view.restart_count,
        "replica": report(view),
    }


def _settings(view: View) -> dict[str, Any]:
    """What of the file is not in force."""
    return {"need_restart": list(view.need_restart), "config_refused": view.config_refused}


def model_list(view: View) -> dict[str, Any]:
    """Answer of `GET /models`."""
    return {"object": "list", "data": [dict(model) for model in view.models]}


def _identity(view: View) -> dict[str, Any]:
    return {
        "host": view.host,
        "hostname": view.host,
        "timestamp": view.updated_at,
        "instance_id": view.instance_id,
        "incarnation": view.incarnation,
        "ttl_s": max(LEAST_TTL_S, LEASES * view.heartbeat_s),
    }


def url(host: str, port: int) -> str:
    """`http://host:port`, with an IPv6 address in brackets."""
    return f"http://[{host}]:{port}" if ":" in host and not host.startswith("[") else f"http://{host}:{port}"
