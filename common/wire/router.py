"""PURE. What a router answers about itself (docs/contract.md 2). Seconds and rates are numbers, times ISO 8601 in UTC."""

from typing import Literal

from msgspec import UNSET, UnsetType

from common.wire.base import JsonObject, Message


class RouterHealth(Message, frozen=True, kw_only=True):
    """`GET /health` and `/status`.

    Args:
        healthy_services: Like `3/4`.
        left_out: Replicas that have no place in the table.
        registry_url: The registries, separated by commas.
        registry_error: Why none of them is followed now.
    """

    status: Literal["healthy", "running"]
    router: Literal["running"] = "running"
    healthy_services: str
    left_out: int
    registry_url: str
    registry_error: str | None
    message: str
    timestamp: str


class RouterReadiness(Message, frozen=True, kw_only=True):
    """`GET /ready`: 503 and `leaving` from SIGTERM until the router takes no more connections (`leave_s`)."""

    status: Literal["ready", "leaving"]


class RoutedService(Message, frozen=True, kw_only=True):
    """One replica as the router sees it.

    Args:
        babysitter_url: The service's port + 1, as its ancestors had it.
        healthy: Requests may go to it.
        response_time: Mean seconds of its requests.
        standing: `fresh`, `suspect`, `down` or `draining`.
        in_flight: Its requests under way.
        static: From the file of static services.
        set_aside: Why it gets no requests for a while, though it may be healthy by its probes.
        problem: Why requests or probes cannot reach it, in plain words.
    """

    name: str
    host: str
    port: int
    url: str
    babysitter_url: str
    healthy: bool
    request_count: int
    error_count: int
    response_time: float
    weight: float
    models: list[str]
    metadata: JsonObject
    standing: str
    in_flight: int
    static: bool
    set_aside: str | UnsetType = UNSET
    problem: str | UnsetType = UNSET


class RoutedServices(Message, frozen=True, kw_only=True):
    """`GET /services`."""

    services: list[RoutedService]
    total: int
    registry_url: str


class RouterStats(Message, frozen=True, kw_only=True):
    """`GET /stats`."""

    total_services: int
    healthy_services: int
    registry_url: str
    services: list[RoutedService]


class ModelFault(Message, frozen=True, kw_only=True):
    """A refusal about models, as OpenAI's and Anthropic's clients both read it."""

    type: Literal["error"] = "error"
    error: JsonObject


class TrafficPoint(Message, frozen=True, kw_only=True):
    """What went through the router in the two seconds before `at` (epoch seconds), per second.

    `first_byte_s`, `gap_s` and `queue_s` are p50, p95 and p99; None where nothing was observed.
    """

    at: float
    requests_s: float
    errors_s: float
    retries_s: float
    ejections: int
    in_flight: int
    first_byte_s: list[float] | None
    gap_s: list[float] | None
    queue_s: list[float] | None
    prompt_tokens_s: float = 0.0
    cached_tokens_s: float = 0.0
    completion_tokens_s: float = 0.0


class ReplicaTraffic(Message, frozen=True, kw_only=True):
    """One replica's share of the latest point; `ejections` counts all, `ejected` is of now."""

    name: str
    standing: str
    static: bool
    in_flight: int
    ejections: int
    ejected: bool
    requests_s: float
    errors_s: float


class KeyTraffic(Message, frozen=True, kw_only=True):
    """What one API key used in the last ten seconds, per second; empty for those who showed none."""

    key: str
    requests_s: float
    prompt_tokens_s: float
    completion_tokens_s: float


class Traffic(Message, frozen=True, kw_only=True):
    """`GET /traffic`: points later than `since`, and every replica as it is now."""

    interval_s: float
    points: list[TrafficPoint]
    workers: int
    connections: int
    registry_error: str | None
    replicas: list[ReplicaTraffic]
    keys: list[KeyTraffic] = []
