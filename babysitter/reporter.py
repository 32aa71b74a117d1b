"""Two records in the registry, kept by two leases: the babysitter's own at once, the server's when it serves."""

from collections.abc import Callable

from babysitter import records
from babysitter.view import View
from common.discovery.lease import Lease
from common.discovery.registry_client import RegistryClient
from common.tasks import TaskScope
from common.wire.record import HeartbeatAnswer


class Reporter:
    """Keeps both records true.

    Args:
        client: The registry.
        view: Gives the replica now.
        interval_s: Between heartbeats.
        doubted: Called with what routers say of a server from which they get nothing.
        refused: Called with why the registry will not have a record of ours; None: it has all that it was told.
    """

    def __init__(
        self,
        client: RegistryClient,
        view: Callable[[], View],
        *,
        interval_s: float,
        doubted: Callable[[str], None],
        refused: Callable[[str | None], None],
    ) -> None:
        self._doubted = doubted
        self._refused = refused
        self.own = Lease(
            client=client,
            registration=lambda: records.own_registration(view()),
            report=lambda: records.own_heartbeat(view()),
            interval_s=interval_s,
            refused=self._note_refusal,
        )
        self.server = Lease(
            client=client,
            registration=lambda: records.server_registration(view()),
            report=lambda: records.server_heartbeat(view()),
            heard=self._hear,
            interval_s=interval_s,
            refused=self._note_refusal,
        )

    def _note_refusal(self) -> None:
        self._refused(self.server.refusal or self.own.refusal)

    def _hear(self, answer: HeartbeatAnswer) -> None:
        if answer.doubt:
            self._doubted(f"{answer.doubt.router}: {answer.doubt.reason}")

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
