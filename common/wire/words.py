"""PURE. The words that messages use (docs/contract.md 1, 5)."""

from enum import StrEnum
from typing import Final


class ReplicaStatus(StrEnum):
    """What a replica is doing, in the order in which it usually does it. A word of a newer process reads as `unknown`."""

    PENDING = "pending"
    CREATING = "creating"
    STARTING = "starting"
    WAITING_FOR_READY = "waiting_for_ready"
    READY = "ready"
    ASLEEP = "asleep"
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> "ReplicaStatus":
        del value
        return cls.UNKNOWN


class DisplayStatus(StrEnum):
    """The release server's three words for people."""

    PENDING = "Pending"
    ACTIVE = "Active"
    FAILED = "Failed"


class RecordStatus:
    """Words that a service record's `status` has for us; the ancestors' clients send others, which are kept as they are."""

    RUNNING: Final = "running"
    DRAINING: Final = "draining"


class RecordKind:
    """`metadata.type` of a service record; a babysitter's own record has its backend's label instead."""

    SERVER: Final = "openai-api"
    """A server that a router may send requests to."""
    AGENT: Final = "node-agent"


class HealthStatus(StrEnum):
    """What the registry's probes say of a service."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class ServerMode(StrEnum):
    """What a replica of the release server's kind runs; `inference` is the old word for `replica`."""

    INFERENCE = "inference"
    REPLICA = "replica"
    REPLICA_MOCK = "replica_mock"
    API_GATEWAY = "api_gateway"
    API_GATEWAY_MOCK = "api_gateway_mock"
    PLATFORM_WORKLOAD = "platform_workload"
    PLATFORM_WORKLOAD_MOCK = "platform_workload_mock"


class StageState(StrEnum):
    """How far a stage of a deployment is; `reused`: an earlier deployment's result stood ready."""

    RUNNING = "running"
    DONE = "done"
    REUSED = "reused"
    FAILED = "failed"


NOT_SERVING: Final = "NA"
"""`endpoint` of a replica that serves nothing yet, or no more."""
WAKING: Final = "waking"
"""The stage in a report of a server that was asleep and is being woken; when that is done, it tells how long it took."""
