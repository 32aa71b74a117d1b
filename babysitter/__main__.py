"""`python -m babysitter --config-file X.toml`: look after one inference server until SIGTERM or SIGINT."""

if __name__ == "__main__":
    import common.quick_start  # noqa: F401 - before all others: see there

import asyncio
import contextlib
import os
import random
import sys
import time
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import aiohttp
import structlog

from babysitter import events as ev
from babysitter import ports
from babysitter.api import ApiContext, make_app
from babysitter.assemble import make_engine, make_probe, make_spec, other_hosts, settle_host
from babysitter.backend_settings import BACKEND_LABELS
from babysitter.home import Home
from babysitter.memory import new_memory, read_memory
from babysitter.notice import leave_in_time, notice
from babysitter.reload import apply
from babysitter.reporter import Reporter
from babysitter.settings import BabysitterSettings, config_file, parse
from babysitter.start_trace import start_spans
from babysitter.supervisor import Supervisor
from common import own_python
from common.clock import SystemClock, iso
from common.discovery.registry_client import RegistryClient
from common.exits import ConfigurationError
from common.http.access import is_loopback, read_credential, read_token
from common.http.audit import AUDIT_FILE, AuditLog
from common.http.client import make_session
from common.http.serve import Address, start, stop_serving, stop_signals, until_stopped
from common.http.tls import Tls
from common.names import bind_address
from common.reload import Reloader, hangup_event
from common.service import complain, run_loaded
from common.settings import SettingsError
from common.tasks import TaskScope
from common.tracing import Tracing, open_tracing, require_tracing

log = structlog.get_logger(__name__)
STOP_MARGIN_S = 20.0


def main() -> int:
    """Console entry."""
    try:
        settings = parse(sys.argv[1:], os.environ)
    except SettingsError as error:
        return complain("babysitter", error)
    return run_loaded("babysitter", settings, partial(serve, environ=own_python.given(os.environ)))


def watched(config: Path | None, settings: BabysitterSettings) -> tuple[Path | None, ...]:
    """The files whose change means to read again."""
    return (config, *settings.tls)


async def serve(settings: BabysitterSettings, environ: Mapping[str, str]) -> None:
    """Run until a signal, or until the replica is stopped.

    Raises:
        ConfigurationError: The world does not allow the settings.
        TaskFailed: A defect of ours.
    """
    structlog.contextvars.bind_contextvars(replica=settings.name)
    hangup, stop = hangup_event(), stop_signals()
    noticed = notice() if settings.end_notice_s else None
    require_tracing(settings)
    clock, tls = SystemClock(), Tls(settings.tls)
    settings = settle_host(settings)
    spec = make_spec(settings, environ=environ, clock=clock, mark=uuid.uuid4().hex)
    if spec.requested.request_id:  # joins these lines with those of whoever took the create request
        structlog.contextvars.bind_contextvars(request_id=spec.requested.request_id)
    home = make_home(settings)
    home.acquire()
    remembered = read_memory(home.state.load(stamp=clock.utcnow().strftime("%Y%m%dT%H%M%SZ")))
    memory = new_memory(remembered, instance_id=str(uuid.uuid4()), epoch_s=int(time.time()), now=iso(clock.utcnow()))
    key = read_credential(settings.api_key_file) if settings.api_key_file else None
    async with (
        make_session(timeout_s=10.0, tls=tls.client) as session,
        make_session(timeout_s=10.0, authorization=key) as asking,
        TaskScope("babysitter") as scope,
    ):
        probe = make_probe(settings, spec, asking)
        engine = make_engine(settings, spec, asking, clock)
        supervisor = Supervisor(spec, home, memory, probe, engine, clock=clock, rng=random.Random())  # noqa: S311 - jitter
        if not await supervisor.adopt():
            refuse_taken_port(settings)
        tracing = open_tracing(settings, "babysitter")
        if tracing is not None:
            supervisor.on_move.append(partial(trace_starts, tracing, settings, supervisor))
        runner = await start(
            make_app(make_source(settings, supervisor, key, tls, home)),
            Address(bind_address(settings.host), settings.port + 1),
            drain_timeout_s=1.0,
            what=f"babysitter {settings.name}",
            also=other_hosts(settings.host),
            tls=tls,
        )
        try:
            reporter = make_reporter(settings, session, supervisor)
            reloader = Reloader(
                settings,
                lambda: settle_host(parse(sys.argv[1:], environ)),
                lambda changed: apply(changed, supervisor, reporter, asking, tls, environ=environ, clock=clock),
                files=partial(watched, config_file(sys.argv[1:], environ)),
                hangup=hangup,
                seen=supervisor.note_settings,
            )
            await supervisor.start(scope)
            if spec.peers is not None:
                peers = spec.peers.run(session, tls.scheme, lambda: supervisor.state, supervisor.tell)
                scope.spawn("peers", peers, service=True)
            scope.spawn("reload", reloader.run(), service=True)
            if noticed is not None:
                scope.spawn("notice", leave_in_time(noticed, supervisor, settings, stop))
            if reporter is not None:
                supervisor.on_change.append(reporter.changed)
                reporter.start(scope)
            await until_told(scope, supervisor, stop)
            if reloader.settings.on_exit == "stop" or supervisor.is_stopping or supervisor.finished.is_set():
                await stop_server(supervisor, reloader.settings)
                if reporter is not None:
                    await reporter.leave()
        finally:
            await supervisor.leave()
            await stop_serving(runner)
            home.release()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)


def trace_starts(tracing: Tracing, settings: BabysitterSettings, supervisor: Supervisor) -> None:
    """After each move: if it ended a start of the server, send the start's spans."""
    memory = supervisor.memory
    attributes = {"inference.backend": BACKEND_LABELS[settings.backend.type]}
    if request_id := supervisor.spec.requested.request_id:
        attributes["inference.request_id"] = request_id
    for span in start_spans(
        memory.timeline,
        memory.stages,
        replica=settings.name,
        attributes=attributes,
        new_id=random.SystemRandom().getrandbits,
    ):
        tracing.send(span)


async def until_told(scope: TaskScope, supervisor: Supervisor, stop: asyncio.Event) -> None:
    """Wait for a signal, or for the replica's stop by a call.

    Raises:
        TaskFailed: A defect of ours.
    """
    finished = asyncio.ensure_future(supervisor.finished.wait())
    stopped = asyncio.ensure_future(until_stopped(scope, stop))
    try:
        await asyncio.wait({finished, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            await stopped
    finally:
        for task in (finished, stopped):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def stop_server(supervisor: Supervisor, settings: BabysitterSettings) -> None:
    """End the server; a second signal is not needed: drain, grace and kill are all bounded.

    A stop that was asked for before goes on as it began, with its drain (W53).
    """
    if not supervisor.is_stopping:
        supervisor.tell(ev.StopRequested("the babysitter was told to stop"))
    limit_s = settings.babysitter.drain_timeout_s + settings.babysitter.stop_grace_s + STOP_MARGIN_S
    try:
        await asyncio.wait_for(supervisor.finished.wait(), limit_s)
    except TimeoutError:
        log.error("server.refused_to_end", after_s=limit_s)


def make_home(settings: BabysitterSettings) -> Home:
    """Under the agent's root when an agent made the replica, else under our own data directory."""
    if settings.replica_dir is not None:
        directory = settings.replica_dir.absolute()
        return Home(directory.parent, directory.name)
    return Home(settings.data_dir / "babysitter", settings.name)


def make_source(
    settings: BabysitterSettings, supervisor: Supervisor, key: str | None, tls: Tls, home: Home
) -> ApiContext:
    """What the babysitter's own calls answer from."""
    return ApiContext(
        supervisor=supervisor,
        router_url=settings.router_url,
        started=time.monotonic(),
        guarded=not is_loopback(settings.host),
        token=read_token(settings.api_token_file) if settings.api_token_file else None,
        server_key=key.removeprefix("Bearer ") if key is not None else None,
        tls=tls,
        audit=AuditLog(home.directory / AUDIT_FILE, f"babysitter {settings.name}"),
    )


def make_reporter(
    settings: BabysitterSettings, session: aiohttp.ClientSession, supervisor: Supervisor
) -> Reporter | None:
    """The reporter, unless no registry is configured."""
    if not settings.registry_url:
        log.warning("registry.not_configured")
        return None
    token = read_token(settings.token_file) if settings.token_file else None
    client = RegistryClient(settings.registry_url, session, token=token)
    return Reporter(
        client,
        supervisor.view,
        interval_s=settings.babysitter.heartbeat_interval_s,
        doubted=supervisor.doubt,
        refused=supervisor.note_refusal,
    )


def refuse_taken_port(settings: BabysitterSettings) -> None:
    """A server that cannot have its port is a fault of the settings, told before anything is started (A14).

    Raises:
        ConfigurationError: Somebody listens there; names who.
    """
    taken = ports.complaint(settings.host, settings.port, f"{settings.name} (its server)")
    if taken is not None:
        raise ConfigurationError(taken)


if __name__ == "__main__":
    sys.exit(main())
