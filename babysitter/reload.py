"""What a running babysitter takes over from changed settings; the rest waits for its restart, and is told (W31).

A new command is that of the server's next start: until then `/health` names it under `need_restart`.
"""

from collections.abc import Mapping
from dataclasses import replace

import aiohttp

from babysitter.assemble import make_engine, make_probe, make_spec
from babysitter.reporter import Reporter
from babysitter.settings import BabysitterSettings
from babysitter.supervisor import Supervisor
from common.clock import Clock
from common.http.tls import Tls


def apply(
    settings: BabysitterSettings,
    supervisor: Supervisor,
    reporter: Reporter | None,
    session: aiohttp.ClientSession,
    tls: Tls,
    *,
    environ: Mapping[str, str],
    clock: Clock,
) -> None:
    """Put `settings` in force in a babysitter that runs: all of them or none.

    Args:
        settings: Of the file, but for what waits for a restart.
        supervisor: Looks after the replica.
        reporter: Keeps its records; None: no registry.
        session: Asks the server, with its key.
        tls: The babysitter's own.
        environ: The environment that the server gets.
        clock: Time.

    Raises:
        ConfigurationError: The command or its directory does not exist, or a certificate is of no use.
    """
    before = supervisor.spec
    spec = make_spec(settings, environ=environ, clock=clock, mark="", addresses=before.addresses)
    spec = replace(spec, peers=before.peers)
    tls.put(tls.read())
    supervisor.reload(spec, make_probe(settings, spec, session), make_engine(settings, spec, session, clock))
    if reporter is not None:
        reporter.reload(spec.heartbeat_s, anew=(spec.metadata, spec.weight) != (before.metadata, before.weight))
