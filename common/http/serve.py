"""Serve an aiohttp app until a signal or a failure, then drain and stop."""

import asyncio
import errno
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import structlog
from aiohttp import hdrs, web

from common import systemd
from common.exits import ConfigurationError
from common.http.listening import BACKLOG, listening
from common.http.tls import Tls
from common.http.tls_site import TlsSite
from common.tasks import TaskScope

log = structlog.get_logger(__name__)
KEEPALIVE_S = 15.0
"""Also the time a client has to send its headers (docs/faults.md F9)."""
LAST_CHANCE_S = 0.2
"""A service that stops still answers for so long what its kept connections ask, and says that they close."""
Quick = Callable[[web.Request], web.StreamResponse | None]
"""Answers a request at once, or leaves it, as it was, to the application."""
_STOPPING = web.AppKey("stopping", asyncio.Event)


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Port 0 lets the kernel choose."""

    host: str
    port: int


async def start(
    app: web.Application,
    address: Address,
    *,
    drain_timeout_s: float,
    what: str,
    also: Sequence[str] = (),
    tls: Tls | None = None,
    quick: Quick | None = None,
    accepters: int = 1,
) -> web.AppRunner:
    """Bind `app` and begin to answer.

    Args:
        app: The application.
        address: Where.
        drain_timeout_s: How long `runner.cleanup()` lets handlers finish.
        what: The service's name, for messages.
        also: Further hosts to listen on, at the same port.
        tls: Shown to clients, where it has a certificate; None: plain HTTP.
        quick: Asked before the application, for what is so frequent that routes and middlewares cost too much.
        accepters: How many connections one turn of the loop takes. uvloop's library takes one from each listening socket
            (libuv since 1.45), and under load a turn takes milliseconds: where most calls come on a connection of their own,
            they would wait in the kernel's queue until their clients give up.

    Raises:
        ConfigurationError: The address cannot be had; names who has the port.
    """
    # aiohttp applies its timeout twice (wait, then cancel and wait): half of ours each (docs/faults.md H2).
    stopping = app[_STOPPING] = asyncio.Event()
    app.on_response_prepare.append(_say_that_it_closes)
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=drain_timeout_s / 2,
        handle_signals=False,
    )
    await runner.setup()
    if quick is not None:
        ask_first(quick, runner, stopping)
    for place in (address, *(Address(host, address.port) for host in also)):
        try:
            if tls is not None and tls.server is not None:
                await TlsSite(runner, place.host, place.port, tls).start()
            else:
                await _listen(runner, place, accepters)
        except OSError as error:
            await runner.cleanup()
            raise ConfigurationError(explain_bind(error, place, what)) from error
    log.info("service.listening", what=what, host=address.host, port=bound_port(runner))
    return runner


async def _listen(runner: web.AppRunner, place: Address, accepters: int) -> None:
    """Plain HTTP at an address; the copies of a socket share its queue."""
    for one in await listening(place.host, place.port):
        with one:
            for _ in range(accepters):
                await web.SockSite(runner, one.dup(), backlog=BACKLOG).start()


async def stop_serving(runner: web.AppRunner) -> None:
    """End what `start` began: accept nobody, answer what is asked and what is on its way, then close."""
    runner.app[_STOPPING].set()
    for site in list(runner.sites):
        await site.stop()
    if runner.server is not None and runner.server.connections:
        await asyncio.sleep(LAST_CHANCE_S)
    await runner.cleanup()


def ask_first(quick: Quick, runner: web.BaseRunner, stopping: asyncio.Event) -> None:
    """Have `quick` asked before the application, until it stops: its last answers say that they close."""
    server: Any = (
        runner.server
    )  # aiohttp declares what it calls with a `BaseRequest`, and calls it with the application's
    ordinary = server.request_handler

    async def handle(request: web.Request) -> web.StreamResponse:
        answered = None if stopping.is_set() else quick(request)
        if answered is None:
            answered = await ordinary(request)
        return answered

    server.request_handler = handle


async def _say_that_it_closes(request: web.Request, response: web.StreamResponse) -> None:
    """The library says `keep-alive` to the last, and then closes: a client would find that out at its next request."""
    if request.config_dict[_STOPPING].is_set():
        response.force_close()
        response.headers[hdrs.CONNECTION] = "close"


def bound_port(runner: web.AppRunner) -> int:
    """The port that `runner` listens on."""
    return int(runner.addresses[0][1])


def stop_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set from now on.

    A process that starts others makes it before it does: a signal that comes during the start would otherwise end it by
    the default action, and leave its children behind.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def until_stopped(scope: TaskScope, stop: asyncio.Event | None = None) -> None:
    """Wait for SIGTERM or SIGINT, or for `stop`, made by `stop_signals` earlier. A service that waits for it serves.

    Raises:
        TaskFailed: A task of `scope` failed first.
    """
    stop = stop or stop_signals()
    systemd.ready()
    failure = asyncio.ensure_future(scope.failed())
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({failure, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if failure.done():
            raise failure.result()
        log.info("service.stopping")
        systemd.stopping()
    finally:
        failure.cancel()
        stopped.cancel()


def explain_bind(error: OSError, address: Address, what: str) -> str:
    """Why the bind failed, who holds the port, and what to do."""
    where = f"{address.host}:{address.port}"
    if error.errno == errno.EADDRINUSE:
        return f"{what}: {where} is taken{_holder(address.port)}; stop it or choose another port"
    if error.errno == errno.EACCES:
        return f"{what}: no permission to listen on {where}; choose a port above 1023"
    return f"{what}: cannot listen on {where}: {error.strerror or error}"


def _holder(port: int) -> str:
    """` by pid N (command)` of the process that listens on `port`, or nothing when it cannot be seen."""
    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr.port == port
                and connection.pid
            ):
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f" by pid {connection.pid} ({command[:80]})"
    except psutil.Error:
        return ""
    return ""
