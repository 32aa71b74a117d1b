"""The agent's own record in the registry: where it is, how full it is, and the replicas that cannot speak for themselves."""

import time
from typing import Any

from babysitter.agent.landlord import Landlord
from babysitter.agent.settings import AgentSettings
from babysitter.assemble import WILDCARDS, full_name
from babysitter.view import LEASES, LEAST_TTL_S, url
from common import __version__
from common.clock import Clock, iso
from common.discovery.lease import Lease
from common.discovery.registry_client import RegistryClient
from common.names import bind_address

KIND = "node-agent"
"""`metadata.type` of an agent's record."""
MOST_SHOWN = 48
"""Replicas without a babysitter that a heartbeat carries at most; of 5 KiB at most, half of what a registry takes."""
SHOWN = (
    "replica_id", "server_mode", "model_name", "status", "display_status", "endpoint", "port", "multibox", "namespace",
    "workdir", "created_at", "updated_at", "error_message", "request_id", "metadata",
)  # fmt: skip
TEXT_LIMIT = 300


class Record:
    """Makes the record and its heartbeats.

    Args:
        settings: The agent's.
        landlord: The replicas.
        clock: Time.
        port: Where the agent listens.
        instance_id: Names this root for ever.
    """

    def __init__(
        self, settings: AgentSettings, landlord: Landlord, *, clock: Clock, port: int, instance_id: str
    ) -> None:
        self._settings = settings
        self._landlord = landlord
        self._clock = clock
        self._port = port
        self._instance_id = instance_id
        self._incarnation = int(time.time() * 1000)  # a restart may take less than a second
        address = bind_address(settings.host)
        self._host = settings.advertise_host or (full_name() if address in WILDCARDS else address)

    def lease(self, client: RegistryClient) -> Lease:
        """The lease that keeps it."""
        return Lease(client, self.registration, self.report, interval_s=self._settings.heartbeat_interval)

    def registration(self) -> dict[str, Any]:
        """Body of `POST /services`."""
        return {
            "name": f"agent-{self._settings.node}",
            "host": self._host,
            "hostname": self._host,
            "port": self._port,
            "url": url(self._host, self._port),
            "status": "running",
            "timestamp": iso(self._clock.utcnow()),
            "instance_id": self._instance_id,
            "incarnation": self._incarnation,
            "ttl_s": max(LEAST_TTL_S, LEASES * self._settings.heartbeat_interval),
            "metadata": {
                "type": KIND,
                "node": self._settings.node,
                "version": __version__,
                "metrics_path": "/metrics",
            },
        }

    def report(self) -> dict[str, Any]:
        """Body of a heartbeat."""
        silent = [keeper for keeper in self._landlord.keepers() if not keeper.has_sitter]
        silent.sort(key=lambda keeper: keeper.tenancy.created_at, reverse=True)
        return {
            "instance_id": self._instance_id,
            "incarnation": self._incarnation,
            "node": self._settings.node,
            **self._landlord.counts(),
            "replicas": [_short(keeper.info()) for keeper in silent[:MOST_SHOWN]],
        }


def _short(info: dict[str, Any]) -> dict[str, Any]:
    """What others need to show the replica, and no more than a heartbeat can carry."""
    found = {name: info[name] for name in SHOWN}
    found["metadata"] = {name: info["metadata"][name] for name in ("node", "deleted") if name in info["metadata"]}
    if isinstance(found["error_message"], str):
        found["error_message"] = found["error_message"][:TEXT_LIMIT]
    return found
