"""`python -m babysitter.mock --port P --model NAME`: run the mock server until SIGTERM or SIGINT."""

if __name__ == "__main__":
    import common.quick_start  # noqa: F401 - before all others: see there

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import uvloop
from aiohttp import web

from babysitter.mock.knobs import Knobs
from babysitter.mock.server import MockServer, make_app
from common.exits import Exit
from common.names import bind_address
from common.settings import SettingsError, add_flags, build, flag_layer
from common.tasks import TaskScope

LEAK_LIMIT_BYTES = 1 << 30
"""A leak nobody stops must not take the machine."""
CHORE_TICK_S = 0.05


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Knobs]:
    """The address and models, and the knobs.

    Raises:
        SettingsError: A knob's value is wrong.
        SystemExit: argparse's.
    """
    parser = argparse.ArgumentParser(prog="babysitter.mock", description=__doc__, allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, required=True, help="port to listen on; 0: the kernel chooses and we say")
    parser.add_argument("--model", action="append", required=True, metavar="NAME", help="a model served (repeatable)")
    parser.add_argument("--name", help="shown as system_fingerprint (default: mock-PORT)")
    add_flags(parser, Knobs, "MOCK_")
    parsed = parser.parse_args(argv)
    return parsed, build(Knobs, [flag_layer(Knobs, "MOCK_", parsed)])


async def serve(arguments: argparse.Namespace, knobs: Knobs) -> None:
    """Serve until a signal that the knobs do not ignore."""
    name = arguments.name or f"mock-{arguments.port}"
    server = MockServer(name, arguments.model, knobs)
    stop = asyncio.Event()

    def on_signal() -> None:
        if not server.knobs.ignore_sigterm:
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    async with TaskScope("mock") as scope:
        scope.spawn("chores", chores(server), service=True)
        if knobs.exit_after_s is not None:
            scope.spawn("exit", exit_later(knobs))
        await wait_for(stop, knobs.slow_start_s)
        runner = web.AppRunner(
            make_app(server),
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=knobs.idle_close_s,
            shutdown_timeout=knobs.drain_s / 2,
            handle_signals=False,
        )
        await runner.setup()
        try:
            while not stop.is_set():
                await listen(runner, arguments, server, stop)
        finally:
            await runner.cleanup()


async def listen(runner: web.AppRunner, arguments: argparse.Namespace, server: MockServer, stop: asyncio.Event) -> None:
    """Listen until `stop` is set or the `refuse_s` knob closes the port for a while."""
    site = web.TCPSite(runner, bind_address(arguments.host), arguments.port, backlog=1024)
    await site.start()
    arguments.port = runner.addresses[0][1]
    sys.stdout.write(f"start service at {arguments.host}:{arguments.port}\n")
    sys.stdout.flush()
    while not stop.is_set() and not server.knobs.refuse_s:
        await wait_for(stop, CHORE_TICK_S)
    if server.knobs.refuse_s and not stop.is_set():
        await site.stop()
        if runner.server is not None:
            runner.server.pre_shutdown()
        await wait_for(stop, server.knobs.refuse_s)
        server.knobs = server.knobs.model_copy(update={"refuse_s": 0.0})


async def wait_for(stop: asyncio.Event, seconds: float) -> None:
    """Return when `stop` is set, or after `seconds`."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


async def chores(server: MockServer) -> None:
    """Log lines and leaked memory, at the rates of the knobs."""
    hoard: list[bytes] = []
    owed = 0.0
    line = 0
    while True:
        await asyncio.sleep(CHORE_TICK_S)
        owed += server.knobs.log_lines_per_s * CHORE_TICK_S
        while owed >= 1:
            owed -= 1
            line += 1
            sys.stdout.write(f"mock log line {line} of {server.name}\n")
        sys.stdout.flush()
        if server.knobs.leak_mb_per_s and sum(map(len, hoard)) < LEAK_LIMIT_BYTES:
            hoard.append(os.urandom(int(server.knobs.leak_mb_per_s * CHORE_TICK_S * 1_000_000)))


async def exit_later(knobs: Knobs) -> None:
    """End the process as a crash would."""
    await asyncio.sleep(knobs.exit_after_s or 0)
    sys.stderr.write(f"the mock exits with {knobs.exit_code}, as told\n")
    sys.stderr.flush()
    os._exit(knobs.exit_code)


def start_grandchild() -> None:
    """A process in its own session that only a search by environment can find (docs/faults.md A12)."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(3600)"]
    subprocess.Popen(sleeper, start_new_session=True, stdin=subprocess.DEVNULL)  # noqa: S603 - our own interpreter


def main() -> int:
    """Console entry."""
    try:
        arguments, knobs = parse(sys.argv[1:])
    except SettingsError as error:
        sys.stderr.write(f"babysitter.mock: error: {error}\n")
        return Exit.CONFIG
    if knobs.grandchild:
        start_grandchild()
    try:
        gc.enable()
        uvloop.run(serve(arguments, knobs))
    except OSError as error:
        sys.stderr.write(f"babysitter.mock: error: cannot listen on {arguments.host}:{arguments.port}: {error}\n")
        return Exit.CONFIG
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
