"""Which processes belong to an attempt, and how all of them are ended (W25, W50).

The shim is a subreaper: while it lives, every process of the attempt is its descendant, whatever it calls itself and
whichever session it made. Once the shim is gone, the server's descendants are, with the session that the server leads;
and whoever was one of them when somebody looked, as pid and start time. The mark in the environment adds to these.
"""

import asyncio
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping

import structlog

from babysitter import identity
from babysitter.identity import Identity, Kinship

log = structlog.get_logger(__name__)
MOMENT_S = 3.0
"""Between TERM and KILL for what a server left behind, as in the shim."""
JANITOR_S = 0.5
"""How long a resource tracker has to clean up after the others are gone, as in the shim."""
LAST_S = 10.0
POLL_S = 0.05
JANITOR_ROUNDS, KILL_ROUNDS = 10, 30


def members(
    *, shim: Identity | None, server: Identity | None, remembered: Iterable[Identity], uuid: str
) -> tuple[Identity, ...]:
    """The attempt's live processes but for the shim, oldest first.

    Args:
        shim: The attempt's shim, dead or alive.
        server: Its server, dead or alive.
        remembered: Processes that were members once.
        uuid: The attempt's mark.
    """
    boot, alive = identity.boot_id(), identity.processes()
    roots = {root.pid for root in (shim, server, *remembered) if root is not None and _is(root, boot, alive)}
    if server is not None and server.pid in roots:
        roots |= {pid for pid, kinship in alive.items() if kinship.session == server.pid}
    roots |= {pid for pid in alive if identity.carries(pid, uuid)}
    pids = descendants(roots, alive) - ({shim.pid} if shim is not None else set())
    family = [Identity(boot, pid, alive[pid].ticks) for pid in pids]
    return tuple(sorted(family, key=lambda process: (process.ticks, process.pid)))


def descendants(roots: Collection[int], alive: Mapping[int, Kinship]) -> set[int]:
    """PURE: `roots`, their children, and so on."""
    children: dict[int, list[int]] = {}
    for pid, kinship in alive.items():
        children.setdefault(kinship.parent, []).append(pid)
    pids, queue = set(roots), list(roots)
    while queue:
        fresh = [pid for pid in children.get(queue.pop(), ()) if pid not in pids]
        pids.update(fresh)
        queue += fresh
    return pids


async def end(look: Callable[[], Iterable[Identity]], *, patience_s: float) -> None:
    """End all that `look` finds, now and meanwhile: TERM, after `patience_s` KILL, those last that clean up after others."""
    asked: set[Identity] = set()
    if patience_s > 0:
        await _until_gone(look, lambda process: _ask(process, asked), patience_s)
    await _until_gone(look, _spare_or_kill, JANITOR_S)
    survivors = await _until_gone(look, _kill, LAST_S)
    if survivors:
        log.error("server.refused_to_end", pids=[process.pid for process in survivors])


def kill(look: Callable[[], Iterable[Identity]]) -> None:
    """KILL all that `look` finds, those last that clean up after others. Blocks, two seconds at most."""
    for treat, rounds in ((_spare_or_kill, JANITOR_ROUNDS), (_kill, KILL_ROUNDS)):
        for _ in range(rounds):
            survivors = tuple(look())
            if not survivors:
                return
            for process in survivors:
                treat(process)
            time.sleep(POLL_S)


async def _until_gone(
    look: Callable[[], Iterable[Identity]], treat: Callable[[Identity], object], limit_s: float
) -> tuple[Identity, ...]:
    """Treat whoever is there until nobody is, or the time is up; those left."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    while survivors := tuple(await asyncio.to_thread(look)):
        for process in survivors:
            treat(process)
        if loop.time() >= deadline:
            break
        await asyncio.sleep(POLL_S)
    return survivors


def _ask(process: Identity, asked: set[Identity]) -> None:
    """TERM once, for some take a second one as a command to drop everything; a stopped process cannot heed it."""
    if process not in asked:
        asked.add(process)
        identity.send(process, signal.SIGTERM)
        identity.send(process, signal.SIGCONT)


def _kill(process: Identity) -> bool:
    return identity.send(process, signal.SIGKILL)


def _spare_or_kill(process: Identity) -> bool:
    return is_janitor(process.pid) or _kill(process)


def is_janitor(pid: int) -> bool:
    """True for multiprocessing's (or loky's) resource tracker, which unlinks shared memory once its users are gone."""
    return any(b"resource_tracker" in word for word in identity.command(pid))


def _is(process: Identity, boot: str, alive: Mapping[int, Kinship]) -> bool:
    kinship = alive.get(process.pid)
    return kinship is not None and kinship.ticks == process.ticks and process.boot_id == boot
