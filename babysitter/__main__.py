"""`python -m babysitter --config-file X.toml`: look after one inference server until SIGTERM or SIGINT."""

import asyncio
import os
import random
import socket
import sys
import time
import uuid
from collections.abc import Mapping
from functools import partial

import aiohttp
import structlog

from babysitter import events as ev
from babysitter import ports
from babysitter.api import Source, make_app
from babysitter.backends.plan import Plan
from babysitter.home import Home
from babysitter.launch import make_command, make_plan
from babysitter.machine import Policy
from babysitter.memory import from_json
from babysitter.probe import Prober
from babysitter.reporter import Reporter
from babysitter.settings import BACKEND_LABELS, BabysitterSettings, parse
from babysitter.supervisor import Spec, Supervisor, new_memory
from common.clock import SystemClock, iso
from common.discovery.registry_client import RegistryClient
from common.http.access import read_token
from common.http.client import make_session
from common.http.serve import Address, start, until_stopped
from common.service import ConfigurationError, complain, run_loaded
from common.settings import SettingsError
from common.tasks import TaskScope

log = structlog.get_logger(__name__)
STOP_MARGIN_S = 20.0
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound


def main() -> int:
    """Console entry."""
    try:
        settings = parse(sys.argv[1:], os.environ)
    except SettingsError as error:
        return complain("babysitter", error)
    return run_loaded("babysitter", settings, partial(serve, environ=dict(os.environ)))


async def serve(settings: BabysitterSettings, environ: Mapping[str, str]) -> None:
    """Run until a signal, or until the replica is stopped.

    Raises:
        ConfigurationError: The world does not allow the settings.
        TaskFailed: A defect of ours.
    """
    structlog.contextvars.bind_contextvars(replica=settings.name)
    plan = make_plan(settings)
    spec = make_spec(settings, plan, environ)
    home = Home(settings.data_dir / "babysitter", settings.name)
    home.acquire()
    clock = SystemClock()
    stamp = clock.utcnow().strftime("%Y%m%dT%H%M%SZ")
    remembered = from_json(home.state.load(stamp=stamp).get("memory"))
    memory = new_memory(remembered, instance_id=str(uuid.uuid4()), epoch_s=int(time.time()), now=iso(clock.utcnow()))
    token = read_token(settings.token_file) if settings.token_file else None
    async with make_session(timeout_s=10.0) as session, TaskScope("babysitter") as scope:
        prober = Prober(
            session=session,
            base_url=f"http://{_in_url(ports.bind_address(_reachable(settings.host)))}:{settings.port}",
            timeout_s=settings.probes.timeout_s,
            expected=settings.expected_models or plan.expected_models,
            configured=settings.models,
        )
        supervisor = Supervisor(spec, home, memory, prober, clock=clock, rng=random.Random())  # noqa: S311 - jitter
        if not await supervisor.adopt():
            refuse_taken_port(settings)
        source = Source(supervisor=supervisor, router_url=settings.router_url, started=clock.monotonic())
        address = Address(ports.bind_address(settings.host), settings.port + 1)
        runner = await start(make_app(source), address, drain_timeout_s=1.0, what=f"babysitter {settings.name}")
        try:
            reporter = make_reporter(settings, session, supervisor, token)
            await supervisor.start(scope)
            if reporter is not None:
                supervisor.changed = reporter.changed
                reporter.start(scope)
            await until_stopped(scope)
            if settings.on_exit == "stop":
                await stop_server(supervisor, settings)
                if reporter is not None:
                    await reporter.leave()
        finally:
            await supervisor.leave()
            await runner.cleanup()
            home.release()


async def stop_server(supervisor: Supervisor, settings: BabysitterSettings) -> None:
    """End the server; a second signal is not needed: drain, grace and kill are all bounded."""
    supervisor.tell(ev.StopRequested("the babysitter was told to stop"))
    limit_s = settings.babysitter.drain_s + settings.babysitter.stop_grace_s + STOP_MARGIN_S
    try:
        await asyncio.wait_for(supervisor.finished.wait(), limit_s)
    except TimeoutError:
        log.error("server.refused_to_end", after_s=limit_s)


def make_spec(settings: BabysitterSettings, plan: Plan, environ: Mapping[str, str]) -> Spec:
    """What the supervisor looks after.

    Raises:
        ConfigurationError: The command or its directory does not exist.
    """
    restarts, probes = settings.babysitter, settings.probes
    policy = Policy(
        restart_first_s=restarts.restart_delay,
        restart_last_s=restarts.restart_delay_max_s,
        steady_s=restarts.restart_reset_s,
        max_restarts=restarts.max_restarts,
        crash_loop_exits=restarts.crash_loop_exits,
        crash_loop_window_s=restarts.crash_loop_window_s,
        no_restart_codes=frozenset(restarts.no_restart_codes),
        unhealthy_after=probes.unhealthy_after,
        healthy_after=probes.healthy_after,
        liveness_s=probes.liveness_s,
        startup_timeout_s=probes.readiness_timeout_s,
        stall_s=probes.stall_s,
        end_stalled=probes.end_stalled,
        drain_s=restarts.drain_s,
    )
    return Spec(
        name=settings.name,
        label=BACKEND_LABELS[settings.backend.type],
        host=advertised_host(settings),
        bind_host=settings.host,
        port=settings.port,
        command=make_command(settings, plan, environ),
        policy=policy,
        heartbeat_s=restarts.heartbeat_interval,
        start_interval_s=probes.start_interval_s,
        interval_s=probes.interval_s,
        metadata=settings.metadata,
        weight=settings.weight,
    )


def make_reporter(
    settings: BabysitterSettings, session: aiohttp.ClientSession, supervisor: Supervisor, token: str | None
) -> Reporter | None:
    """The reporter, unless no registry is configured."""
    if not settings.registry_url:
        log.warning("registry.not_configured")
        return None
    client = RegistryClient(settings.registry_url, session, token=token)
    return Reporter(client, supervisor.view, interval_s=settings.babysitter.heartbeat_interval)


def refuse_taken_port(settings: BabysitterSettings) -> None:
    """A server that cannot have its port is a fault of the settings, told before anything is started (A14).

    Raises:
        ConfigurationError: Somebody listens there; names who.
    """
    taken = ports.complaint(settings.host, settings.port, f"{settings.name} (its server)")
    if taken is not None:
        raise ConfigurationError(taken)


def advertised_host(settings: BabysitterSettings) -> str:
    """The host that others use: as told, else the one listened on, else this machine's full name."""
    if settings.advertise_host:
        return settings.advertise_host
    return socket.getfqdn() if settings.host in WILDCARDS else ports.bind_address(settings.host)


def _reachable(host: str) -> str:
    """Where this machine itself reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - translated, not bound


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    sys.exit(main())
