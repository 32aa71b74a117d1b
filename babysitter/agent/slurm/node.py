"""`python -m babysitter.agent.slurm.node DIRECTORY`: what a job runs on its node, in place of an agent there.

It chooses ports, makes the server's settings, and keeps a babysitter until that ends by itself: one that dies is started
again and adopts its server. Slurm's signals (SIGUSR1: the end is near; SIGTERM) go on to the babysitter.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from babysitter import ports
from babysitter.agent import port_plan, processes
from babysitter.agent.slurm.place import LIMIT_BYTES, ORDER, RECIPE, WHERE, Order, Where
from babysitter.agent.template_request import read_recipe
from babysitter.assemble import WILDCARDS, full_name
from babysitter.settings import RENDERED
from common import lock_file
from common.atomic_file import read_bounded, write_atomic
from common.exits import Exit

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOCK_WAIT_S = 120.0
"""A file server lets go of a dead node's locks after 90 s (NFS's lease)."""
AGAIN_FIRST_S, AGAIN_LAST_S, STEADY_S, MOST_ENDS = 1.0, 30.0, 60.0, 8
LEFT_TO_SLURM = ("SLURM_", "SLURMD_", "SBATCH_")
LEFT_TO_NODE = frozenset({"TMPDIR", "HOSTNAME", "GPU_DEVICE_ORDINAL"})


class Unready(RuntimeError):
    """The node cannot run it now; the text says why."""


def environment(agents: dict[str, str], nodes: dict[str, str]) -> dict[str, str]:
    """The agent's environment, as a babysitter beside it would have, but for what Slurm and the node say."""

    def is_nodes(name: str) -> bool:
        return name.startswith(LEFT_TO_SLURM) or name.endswith("_VISIBLE_DEVICES") or name in LEFT_TO_NODE

    return {**nodes, **{name: value for name, value in agents.items() if not is_nodes(name)}}


def free_port(order: Order, job: int) -> int:
    """The first of two free ports. Jobs of one node begin to look at places of their own, by their ids.

    Raises:
        Unready: There are none.
    """
    avoid = range(0)
    with contextlib.suppress(OSError):
        avoid = port_plan.ephemeral(EPHEMERAL.read_text(encoding="ascii"))
    pairs = max(1, (order.last_port - order.first_port + 1) // 2)
    after = order.first_port + 2 * (job % pairs) - 1
    for port in port_plan.candidates(order.first_port, order.last_port, taken=(), avoid=avoid, after=after):
        if ports.is_free(order.host, port, port + 1):
            return port
    raise Unready(f"no two ports between {order.first_port} and {order.last_port} are free here")


def prepare(directory: Path, job: int) -> tuple[Order, int]:
    """Everything that its babysitter needs; the order, and the server's port.

    Raises:
        Unready: Not now.
        OSError: The directory is not to be had here.
        ValueError: The order is none.
    """
    order = msgspec.json.decode(read_bounded(directory / ORDER, limit_bytes=LIMIT_BYTES), type=Order)
    deadline = time.monotonic() + LOCK_WAIT_S
    while lock_file.is_held(directory / "lock"):
        if time.monotonic() > deadline:
            raise Unready(f"another babysitter still holds {directory}")
        time.sleep(1)
    processes.end_servers(directory / "attempts")  # what an earlier job may have left here
    port = free_port(order, job)
    if (directory / RECIPE).exists():
        recipe = read_recipe(read_bounded(directory / RECIPE, limit_bytes=LIMIT_BYTES))
        rendered = recipe.rendered(host=order.host, port=port, accelerators=order.accelerators)
        write_atomic(directory / RENDERED, rendered)
    host = full_name() if order.host in WILDCARDS else order.host
    write_atomic(directory / WHERE, msgspec.json.encode(Where(job=job, host=host, port=port)))
    return order, port


class Keeper:
    """Keeps a babysitter.

    Args:
        argv: Its command.
        env: Its environment.
        notice_s: How long before the end SIGUSR1 comes.
    """

    def __init__(self, argv: list[str], env: dict[str, str], notice_s: int) -> None:
        self._argv = argv
        self._env = env
        self._notice_s = notice_s
        self._warned_at: float | None = None
        self._told = threading.Event()
        self._pid = 0

    def run(self) -> int:
        """Until it ends by itself; its exit code."""
        signal.signal(signal.SIGUSR1, self._warned)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        wait_s, ends = AGAIN_FIRST_S, 0
        while True:
            began = time.monotonic()
            code = self._once()
            if code in (Exit.OK, Exit.CONFIG) or self._told.is_set():
                return max(code, 0)
            wait_s, ends = (AGAIN_FIRST_S, 0) if time.monotonic() - began >= STEADY_S else (wait_s * 2, ends + 1)
            if ends >= MOST_ENDS:
                return Exit.FAILED
            if self._told.wait(min(wait_s, AGAIN_LAST_S)):
                return Exit.OK

    def _once(self) -> int:
        """One babysitter, from start to end. Signals wait until it is there; it takes SIGUSR1 when it is ready to."""
        with _blocked():
            notice_s = self._notice_s
            if self._warned_at is not None:
                notice_s = max(1, int(notice_s - (time.monotonic() - self._warned_at)))
            argv = [*self._argv, "--end-notice-s", str(notice_s)]
            self._pid = os.posix_spawnp(argv[0], argv, self._env, setsigmask={signal.SIGUSR1})
            if self._warned_at is not None:
                os.kill(self._pid, signal.SIGUSR1)
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def _warned(self, *_: object) -> None:
        if self._warned_at is None:
            self._warned_at = time.monotonic()
            self._pass_on(signal.SIGUSR1)

    def _end(self, number: int, _frame: object) -> None:
        self._told.set()
        self._pass_on(signal.Signals(number))

    def _pass_on(self, number: signal.Signals) -> None:
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    numbers = {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def main() -> int:
    """The job."""
    os.umask(0o077)
    directory, job = Path(sys.argv[1]), int(os.environ.get("SLURM_JOB_ID", "0"))
    try:
        order, port = prepare(directory, job)
    except (Unready, OSError, ValueError) as error:
        sys.stderr.write(f"error: job {job} on {os.uname().nodename}: {error}\n")
        return Exit.UNAVAILABLE
    flags = [processes.FLAG, str(directory), "--port", str(port), "--config", str(directory / "babysitter.json")]
    return Keeper([*order.command, *flags], environment(order.env, dict(os.environ)), order.notice_s).run()


if __name__ == "__main__":
    sys.exit(main())
