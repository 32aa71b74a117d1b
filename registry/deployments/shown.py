"""How deployments stand as this registry shows them, and who waits for that to change."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from common.wire.deployment import DeploymentInfo, ModelState
from registry.deployments import board
from registry.deployments.model import StoredDeployment


@dataclass(slots=True)
class Shown:
    """How deployments stand, as this registry knows; `changed` is set, and another one takes its place, when they change."""

    stored: Mapping[str, StoredDeployment] = field(default_factory=dict)
    statuses: dict[str, board.Status] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    known: bool = False
    """They were read once: a registry that has just begun knows of none, which does not mean that there are none."""
    closed: bool = False

    def close(self) -> None:
        """End whoever waits for changes."""
        self.closed = True
        self.changed.set()

    def info(self, stored: StoredDeployment) -> DeploymentInfo:
        """One deployment as it is shown."""
        return board.info_of(stored, self.statuses.get(stored.name) or board.first_status(stored))

    def states(self) -> list[ModelState]:
        """What routers hear."""
        return board.states(self.stored, self.statuses)

    def show(self, stored: Mapping[str, StoredDeployment], statuses: dict[str, board.Status]) -> list[str]:
        """Take in what is true now; returns the names whose status changed."""
        self.known = True
        news = [name for name, status in statuses.items() if self.statuses.get(name) != status]
        if news or stored != self.stored or statuses.keys() != self.statuses.keys():
            self.stored, self.statuses = stored, statuses
            self.changed.set()
            self.changed = asyncio.Event()
        return news
