"""Two records in the registry, kept by two leases: the babysitter's own at once, the server's when it serves."""

from collections.abc import Callable, Mapping
from typing import Any

from babysitter import view as pictures
from babysitter.view import View
from common.discovery.lease import Lease
from common.discovery.registry_client import RegistryClient
from common.tasks import TaskScope


class Reporter:
    """Keeps both records true.

    Args:
        client: The registry.
        picture: Takes a picture of the replica.
        interval_s: Between heartbeats.
        doubted: Called with what routers say of a server from which they get nothing.
    """

    def __init__(
        self,
        client: RegistryClient,
        picture: Callable[[], View],
        *,
        interval_s: float,
        doubted: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self._doubted = doubted
        self.own = Lease(
            client=client,
            registration=lambda: pictures.own_registration(picture()),
            report=lambda: pictures.own_heartbeat(picture()),
            interval_s=interval_s,
            refused=self.changed,
        )
        self.server = Lease(
            client=client,
            registration=lambda: pictures.server_registration(picture()),
            report=lambda: pictures.server_heartbeat(picture()),
            heard=self._hear,
            interval_s=interval_s,
            refused=self.changed,
        )

    @property
    def refusal(self) -> str | None:
        """Why the registry will not have a record of ours; None while it has all that it was told."""
        return self.server.refusal or self.own.refusal

    def _hear(self, answer: Mapping[str, Any]) -> None:
        doubt = answer.get("doubt")
        if isinstance(doubt, dict):
            self._doubted(f"{doubt.get('router')}: {doubt.get('reason')}")

    def start(self, scope: TaskScope) -> None:
        """Begin to report."""
        scope.spawn("report.own", self.own.keep(), service=True)
        scope.spawn("report.server", self.server.keep(), service=True)

    def changed(self) -> None:
        """Something that others should know at once."""
        self.own.wake()
        self.server.wake()

    def reload(self, interval_s: float, *, anew: bool) -> None:
        """Another interval between heartbeats; `anew`: what the records hold has changed, so they are made again."""
        for lease in (self.own, self.server):
            lease.interval_s = interval_s
            if anew:
                lease.registered_as = None
        self.changed()

    async def leave(self) -> None:
        """Take both records back."""
        await self.server.leave()
        await self.own.leave()
