"""PURE. What a babysitter answers at its server's port + 1, in the ancestor's words where it has them (docs/contract.md 3)."""

from typing import Literal

from msgspec import field

from common.wire.base import JsonObject, Message
from common.wire.replica import JobLedger, ReplicaReport, Stage, Transition
from common.wire.words import DisplayStatus


class BabysitterHealth(Message, frozen=True, kw_only=True):
    """`GET /health`: the babysitter runs, and its server is `healthy`, `unregistered` (no router finds it) or else.

    The members that a report has too mean the same here; `timestamp` is now.
    """

    status: str
    service: str
    babysitter: str = "running"
    infinilm_server_running: bool
    infinilm_server_port: int
    timestamp: str
    display_status: DisplayStatus
    restart_count: int
    error_message: str | None
    registration_error: str | None
    next_restart_at: str | None
    stalled: bool
    late: bool
    need_restart: list[str]
    config_refused: str | None
    state_persist_failed: str | None


class BabysitterInfo(Message, frozen=True, kw_only=True):
    """`GET /info`: who this is, and the replica's whole report. `uptime` is the babysitter's, in seconds."""

    service: str
    babysitter: str = "running"
    name: str
    host: str
    port: int
    url: str
    service_type: str
    metadata: JsonObject
    router_url: str | None
    infinilm_server_port: int
    uptime: float
    restart_count: int
    replica: ReplicaReport


class BabysitterTimeline(Message, frozen=True, kw_only=True):
    """`GET /timeline`: what the replica went through; `state` is the babysitter's own word, finer than a status."""

    name: str
    state: str
    transitions: list[Transition]
    stages: list[Stage]
    jobs: JobLedger = field(default_factory=JobLedger)


class BabysitterTold(Message, frozen=True, kw_only=True):
    """`POST /stop`, `/retry`, `/sleep` and `/wake`: what begins now."""

    status: Literal["starting", "stopping", "dozing", "waking"]
    name: str
