"""PURE. What the registry answers about itself and its records (docs/contract.md 1). Times are ISO 8601 in UTC."""

from typing import Literal

from msgspec import UNSET, UnsetType

from common.wire.base import Message
from common.wire.record import ServiceRecord
from common.wire.words import HealthStatus


class Acknowledgement(Message, frozen=True, kw_only=True):
    """It is done."""

    message: str


class ServiceAnswer(Message, frozen=True, kw_only=True):
    """The record that a command left; `heartbeat_interval_s` is told who registers (`HeartbeatAnswer`)."""

    message: str
    service: ServiceRecord
    heartbeat_interval_s: float | UnsetType | None = UNSET


class ServiceList(Message, frozen=True, kw_only=True):
    """`GET /services`."""

    services: list[ServiceRecord]
    total: int
    timestamp: str


class ServiceHealth(Message, frozen=True, kw_only=True):
    """`GET /services/{name}/health`: it was probed now. `last_heartbeat` is epoch seconds."""

    service: str
    health_status: HealthStatus
    is_healthy: bool
    last_heartbeat: float
    timestamp: str


class RegistryHealth(Message, frozen=True, kw_only=True):
    """`GET /health`.

    Args:
        epoch: Names this life of the registry; revisions of another cannot be compared.
        revision: Of the last change.
        self_preservation: Leases do not end, because too many are overdue at once.
        store: Whether what is registered can be written down.
        replicas_total: Those reported, and those made a moment ago.
    """

    status: Literal["healthy"] = "healthy"
    registry: Literal["running"] = "running"
    registered_services: int
    healthy_services: int
    timestamp: str
    epoch: str
    revision: int
    self_preservation: bool
    store: Literal["ok", "unavailable"]
    version: str
    replicas_total: int
    replicas_ready: int


class ReplicasHealth(Message, frozen=True, kw_only=True):
    """`GET /api/v1/health`."""

    status: Literal["healthy"] = "healthy"
    version: str
    timestamp: str
    replicas_total: int
    replicas_ready: int


class RegistryStats(Message, frozen=True, kw_only=True):
    """`GET /stats`. `uptime` is seconds; `suspect_services` are kept past their lease by self-preservation."""

    total_services: int
    healthy_services: int
    unhealthy_services: int
    status_distribution: dict[str, int]
    host_distribution: dict[str, int]
    uptime: float
    timestamp: str
    watchers: int
    suspect_services: int


class TargetGroup(Message, frozen=True, kw_only=True):
    """One target of `GET /sd/prometheus`."""

    targets: list[str]
    labels: dict[str, str]


class Peer(Message, frozen=True):
    """A router or a babysitter that the registry may ask for the page."""

    name: str
    url: str


class RouterList(Message, frozen=True, kw_only=True):
    """`GET /ui/routers`: those that watch this registry."""

    routers: list[Peer]


class Session(Message, frozen=True, kw_only=True):
    """`GET /ui/session`: what the caller may do. `level` is `read`, `register` or `admin`; `prefix` limits the names that it may change."""

    level: str
    prefix: str
    guarded: bool
    version: str
