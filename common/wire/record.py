"""PURE. The service record as it travels between registry, babysitters and routers (docs/contract.md 1), and the watch."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from common.wire.base import JsonObject, Message
from common.wire.words import HealthStatus, RecordStatus

KEY_LABEL = "api_key_label"
"""Member of `metadata`: the service needs a key, which routers know under this label. The key itself is never told."""


class Registration(Message, frozen=True, kw_only=True):
    """Body of `POST /services`.

    Args:
        timestamp: Whatever the registering side calls now (legacy: a float or ISO text).
        weight: Relative share of requests.
        instance_id: Names what is registered for ever; none of the ancestors has one.
        incarnation: Rises with each process that speaks for it; the highest wins.
        ttl_s: How long the record lasts without a heartbeat.
    """

    name: str
    host: str
    port: int
    hostname: str
    url: str
    status: str
    timestamp: Any = None
    metadata: JsonObject = {}
    weight: float | UnsetType = UNSET
    instance_id: str | UnsetType = UNSET
    incarnation: int = 0
    ttl_s: float | UnsetType = UNSET


class ServiceRecord(Message, frozen=True, kw_only=True):
    """One registered service, as the registry shows it.

    `weight` is relative (1.0 by default); `timestamp` is whatever the registering side sent (legacy: a float or ISO
    text); `last_heartbeat` is epoch seconds. `instance_id`, `incarnation` and `generation` are ours: a legacy record
    has None, 0 and a generation given by the registry. `stale`: its lease has ended; `suspect`: a heartbeat is late;
    `ttl_s`: how long it lasts without one. `hand_over`: while it drains, routers move its streams (docs/streams.md).
    """

    name: str
    host: str
    port: int
    url: str
    hostname: str = ""
    status: str = RecordStatus.RUNNING
    timestamp: Any = None
    last_heartbeat: float = 0.0
    health_status: str = HealthStatus.UNKNOWN
    is_healthy: bool = True
    weight: float | None = None
    metadata: JsonObject = {}
    instance_id: str | None = None
    incarnation: int = 0
    generation: int = 0
    draining: bool = False
    hand_over: bool | None = None
    stale: bool = False
    suspect: bool = False
    ttl_s: float | None = None

    @property
    def type(self) -> str | None:
        """`metadata.type`, or None."""
        kind = self.metadata.get("type")
        return kind if isinstance(kind, str) else None


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


class Heartbeat(Message, frozen=True, kw_only=True):
    """What a registry acts upon in the body of `POST /services/{name}/heartbeat`; all else in it is a replica's report."""

    status: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    instance_id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(?!\n)$")] | None = None
    incarnation: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None


class Doubt(Message, frozen=True, kw_only=True):
    """What a router gets from a server that calls itself healthy, as the registry passes it on."""

    router: str
    reason: str


class HeartbeatAnswer(Message, frozen=True, kw_only=True):
    """Answer to a heartbeat, and what is read of that to a registration.

    `heartbeat_interval_s`: a heartbeat in so many seconds is enough; absent: there is no limit. Who is to beat less often than
    before registers for a longer lease first. None: the registry does not know yet, and everybody stays as it is.
    """

    message: str = ""
    timestamp: str = ""
    doubt: Doubt | UnsetType = UNSET
    heartbeat_interval_s: float | UnsetType | None = UNSET


class FailingServers(Message, frozen=True, kw_only=True):
    """Body of `POST /v1/routers/{name}/failing`: servers that call themselves healthy, and why requests fail there."""

    failing: dict[str, str]


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
