"""The service record as it travels between registry, babysitters and routers (docs/contract.md 1), and the watch's changes.

Unknown members are ignored on reading, so that old and new processes can meet.
"""

from typing import Any, Literal

import msgspec

ROUTABLE_TYPE = "openai-api"
"""`metadata.type` of a record that a router may send requests to."""
KEY_LABEL = "api_key_label"
"""Member of `metadata`: the service needs a key, which routers know under this label. The key itself is never told."""


class ServiceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One registered service, as the registry shows it.

    `weight` is relative (1.0 by default); `timestamp` is whatever the registering side sent (legacy: a float or ISO
    text); `last_heartbeat` is epoch seconds. `instance_id`, `incarnation` and `generation` are ours: a legacy record
    has None, 0 and a generation given by the registry.
    """

    name: str
    host: str
    port: int
    url: str
    hostname: str = ""
    status: str = "running"
    timestamp: Any = None
    last_heartbeat: float = 0.0
    health_status: str = "unknown"
    is_healthy: bool = True
    weight: float | None = None
    metadata: dict[str, Any] = {}
    instance_id: str | None = None
    incarnation: int = 0
    generation: int = 0
    draining: bool = False

    @property
    def type(self) -> str | None:
        """`metadata.type`, or None."""
        found = self.metadata.get("type")
        return found if isinstance(found, str) else None


def plain_weight(weight: float) -> float:
    """A weight as it goes out: a whole number without a point, since the ancestors' router in Rust reads a `u32`."""
    return int(weight) if weight == int(weight) else weight


def record_from_wire(value: Any) -> ServiceRecord:
    """Read one record; a member that is null counts as absent, as registries of the old kind mean it.

    Raises:
        msgspec.ValidationError: A required member is missing or of the wrong type.
    """
    if isinstance(value, dict):
        value = {name: member for name, member in value.items() if member is not None}
    return msgspec.convert(value, ServiceRecord, strict=False)


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot", tag_field="type"):
    """The whole table at `revision`. `partial` is never set by the registry: absence from a snapshot is absence."""

    epoch: str
    revision: int
    services: list[ServiceRecord]


class Put(msgspec.Struct, frozen=True, tag="put", tag_field="type"):
    """A record was registered or changed."""

    epoch: str
    revision: int
    service: ServiceRecord


class Delete(msgspec.Struct, frozen=True, tag="delete", tag_field="type"):
    """A record is gone: `deregistered` on purpose (leave at once), or `expired` (a grace period may apply; D28)."""

    epoch: str
    revision: int
    name: str
    reason: Literal["deregistered", "expired", "replaced"]


class Beat(msgspec.Struct, frozen=True, tag="beat", tag_field="type"):
    """Nothing changed up to `revision`; the stream is alive."""

    epoch: str
    revision: int


Update = Snapshot | Put | Delete | Beat
"""One line of `GET /v1/watch`."""

decode_update = msgspec.json.Decoder(Update, strict=False).decode
