"""`python -m babysitter.agent`: the node's agent, until SIGTERM or SIGINT."""

if __name__ == "__main__":
    import common.quick_start  # noqa: F401 - before all others: see there

import os
import sys
from collections.abc import Mapping
from functools import partial

import structlog

from babysitter.agent.api import AgentContext
from babysitter.agent.launch_spec import make_launch_spec
from babysitter.agent.manager import ReplicaManager
from babysitter.agent.registration import AgentRegistration
from babysitter.agent.reload import apply, files_of, token_of
from babysitter.agent.routes import make_app
from babysitter.agent.settings import AgentSettings, config_file, parse
from babysitter.agent.slurm.commands import SlurmCommands
from babysitter.agent.slurm.runner import SlurmRunner
from babysitter.agent.store import ReplicaStore
from common.clock import SystemClock
from common.discovery.registry_client import RegistryClient
from common.http.access import read_token
from common.http.audit import AUDIT_FILE, AuditLog
from common.http.client import make_session
from common.http.serve import Address, bound_port, start, stop_serving, stop_signals, until_stopped
from common.http.tls import Tls
from common.reload import Reloader, hangup_event
from common.service import complain, run_loaded
from common.settings import SettingsError
from common.tasks import TaskScope

log = structlog.get_logger(__name__)
CALL_TIMEOUT_S = 10.0


def main() -> int:
    """Console entry."""
    try:
        settings = parse(sys.argv[1:], os.environ)
    except SettingsError as error:
        return complain("agent", error)
    os.umask(0o077)
    return run_loaded("agent", settings, partial(serve, environ=dict(os.environ)))


async def serve(settings: AgentSettings, environ: Mapping[str, str]) -> None:
    """Run until a signal.

    Raises:
        ConfigurationError: The world does not allow the settings.
        TaskFailed: A defect of ours.
    """
    stop = stop_signals()
    token, tls = token_of(settings), Tls(settings.tls)
    store = ReplicaStore(settings.local_workdir_root)
    store.acquire()
    try:
        launch_spec = make_launch_spec(settings, environ, store.root)
        clock = SystemClock()
        async with (
            make_session(timeout_s=CALL_TIMEOUT_S, limit=0, tls=tls.client) as session,
            TaskScope("agent") as scope,
        ):
            queue = make_queue(settings, store, environ)
            manager = ReplicaManager(
                settings, store, launch_spec, session=session, scope=scope, clock=clock, runner=queue
            )
            await manager.accelerators.look()
            manager.adopt()
            agent = AgentContext(
                manager, settings.node, token, tls, AuditLog(store.root / AUDIT_FILE, f"agent {settings.node}")
            )
            config = config_file(sys.argv[1:], environ)
            reloader = Reloader(
                settings,
                partial(parse, sys.argv[1:], environ),
                partial(apply, agent, lambda changed: make_launch_spec(changed, environ, store.root)),
                files=lambda now: (config, *files_of(now)),
                hangup=hangup_event(),
            )
            runner = await start(
                make_app(agent),
                Address(settings.host, settings.port),
                drain_timeout_s=settings.drain_timeout_s,
                what="agent",
                tls=tls,
            )
            lease = None
            try:
                if settings.registry_url:
                    registry_token = read_token(settings.registry_token_file) if settings.registry_token_file else None
                    client = RegistryClient(settings.registry_url, session, token=registry_token)
                    port, own_id = bound_port(runner), store.own_id()
                    registration = AgentRegistration(settings, manager, clock=clock, port=port, instance_id=own_id)
                    lease = registration.lease(client)
                    manager.changed = lease.wake
                    scope.spawn("report", lease.keep(), service=True)
                scope.spawn("reload", reloader.run(), service=True)
                if queue is not None:
                    scope.spawn("queue", queue.run(), service=True)
                scope.spawn("renew", manager.renew(), service=True)
                scope.spawn("accelerators", manager.accelerators.keep(), service=True)
                await until_stopped(scope, stop)
                if reloader.settings.cleanup_on_shutdown:
                    await manager.clean_up()
            finally:
                if lease is not None:
                    await lease.leave()
                await stop_serving(runner)
    finally:
        store.release()


def make_queue(settings: AgentSettings, store: ReplicaStore, environ: Mapping[str, str]) -> SlurmRunner | None:
    """Slurm's, where it runs replicas.

    Raises:
        ConfigurationError: The root is of no use to it.
    """
    if settings.runner == "local":
        return None
    return SlurmRunner(settings, store.root, store.own_id(), SlurmCommands(environ), SystemClock())


if __name__ == "__main__":
    sys.exit(main())
