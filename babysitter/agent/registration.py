"""The agent's own record in the registry: its address, its capacity, and the replicas whose babysitter does not run."""

import itertools
import time

import msgspec
from msgspec import UNSET
from msgspec.structs import asdict

from babysitter.agent.manager import ReplicaManager
from babysitter.agent.settings import AgentSettings
from babysitter.assemble import WILDCARDS, full_name
from babysitter.records import LEASES, LEAST_TTL_S
from common import __version__
from common.clock import Clock, iso
from common.discovery.lease import Lease
from common.discovery.limits import BODY_LIMIT_BYTES
from common.discovery.registry_client import RegistryClient
from common.discovery.replica import deployment_marks
from common.names import bind_address
from common.wire.address import url
from common.wire.record import Registration
from common.wire.replica import AgentReport, ReplicaInfo
from common.wire.words import RecordKind, RecordStatus

SHOWN_LIMIT_BYTES = BODY_LIMIT_BYTES // 2
"""Of a heartbeat's replicas without a babysitter, each of 5 KiB at most: hundreds may wait in a cluster's queue."""
SHOWN = (
    "replica_id", "server_mode", "model_name", "status", "display_status", "endpoint", "port", "multibox", "namespace",
    "workdir", "created_at", "updated_at", "error_message", "request_id", "metadata",
)  # fmt: skip
TEXT_LIMIT = 300
_encode = msgspec.json.Encoder().encode


class AgentRegistration:
    """Makes the record and its heartbeats.

    Args:
        settings: The agent's.
        manager: The replicas.
        clock: Time.
        port: Where the agent listens.
        instance_id: Names this root for ever.
    """

    def __init__(
        self, settings: AgentSettings, manager: ReplicaManager, *, clock: Clock, port: int, instance_id: str
    ) -> None:
        self._settings = settings
        self._manager = manager
        self._clock = clock
        self._port = port
        self._instance_id = instance_id
        self._incarnation = int(time.time() * 1000)  # a restart may take less than a second
        address = bind_address(settings.host)
        self._host = settings.advertise_host or (full_name() if address in WILDCARDS else address)

    def lease(self, client: RegistryClient) -> Lease:
        """The lease that keeps it."""
        interval_s = self._settings.heartbeat_interval_s
        return Lease(client, self.registration, self.report, interval_s=interval_s, reports_at_once=True)

    def registration(self) -> Registration:
        """Body of `POST /services`."""
        return Registration(
            name=f"agent-{self._settings.node}",
            host=self._host,
            hostname=self._host,
            port=self._port,
            url=url(self._host, self._port, scheme="https" if self._settings.tls_cert_file else "http"),
            status=RecordStatus.RUNNING,
            timestamp=iso(self._clock.utcnow()),
            instance_id=self._instance_id,
            incarnation=self._incarnation,
            ttl_s=max(LEAST_TTL_S, LEASES * self._settings.heartbeat_interval_s),
            metadata={
                "type": RecordKind.AGENT,
                "node": self._settings.node,
                "version": __version__,
                "metrics_path": "/metrics",
            },
        )

    def report(self) -> AgentReport:
        """Body of a heartbeat."""
        silent = [controller for controller in self._manager.controllers() if not controller.speaks]
        silent.sort(key=lambda controller: controller.record.created_at, reverse=True)
        shown = [_short(controller.info()) for controller in silent]
        sizes = itertools.accumulate(len(_encode(info)) for info in shown)
        return AgentReport(
            instance_id=self._instance_id,
            incarnation=self._incarnation,
            node=self._settings.node,
            **asdict(self._manager.counts()),
            replicas=[info for info, size in zip(shown, sizes, strict=True) if size <= SHOWN_LIMIT_BYTES],
            labels=self._manager.settings.labels,
            accelerators=self._manager.accelerators.glance(self._manager.holds()),
            readings=self._manager.accelerators.readings,
            templates=self._manager.templates.glances(),
        )


def _short(info: ReplicaInfo) -> ReplicaInfo:
    """What others need to show the replica, and no more than a heartbeat can carry."""
    members = {name: getattr(info, name) for name in SHOWN}
    kept = {name: info.metadata[name] for name in ("node", "deleted") if name in info.metadata}
    members["metadata"] = {**kept, **deployment_marks(info.metadata)}
    if info.error_message is not None:
        members["error_message"] = info.error_message[:TEXT_LIMIT]
    members["stages"] = [stage for stage in info.stages if stage.ends_at is not UNSET]  # it waits for a scheduler
    return ReplicaInfo(**members)
