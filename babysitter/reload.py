"""What a running babysitter takes over from changed settings; the rest waits for its restart, and is told (W31).

A new command is that of the server's next start: until then `/health` names it under `need_restart`.
"""

from collections.abc import Mapping

import aiohttp

from babysitter.assemble import make_engine, make_prober, make_spec
from babysitter.reporter import Reporter
from babysitter.settings import BabysitterSettings
from babysitter.supervisor import Supervisor
from common.clock import Clock


class Apply:
    """Puts settings in force in a babysitter that runs.

    Args:
        supervisor: Looks after the replica.
        reporter: Its records' keeper; None: no registry.
        session: Asks the server, with its key.
        environ: The environment that the server gets.
        clock: Time.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        reporter: Reporter | None,
        session: aiohttp.ClientSession,
        environ: Mapping[str, str],
        clock: Clock,
    ) -> None:
        self._supervisor = supervisor
        self._reporter = reporter
        self._session = session
        self._environ = environ
        self._clock = clock

    def __call__(self, settings: BabysitterSettings) -> None:
        """All of them or none.

        Raises:
            ConfigurationError: The command or its directory does not exist.
        """
        known = self._supervisor.spec.addresses
        spec = make_spec(settings, environ=self._environ, clock=self._clock, mark="", addresses=known)
        is_told = (spec.metadata, spec.weight) == (self._supervisor.spec.metadata, self._supervisor.spec.weight)
        prober = make_prober(settings, spec, self._session)
        self._supervisor.reload(spec, prober, make_engine(settings, spec, self._session, self._clock))
        if self._reporter is not None:
            self._reporter.reload(spec.heartbeat_s, anew=not is_told)
