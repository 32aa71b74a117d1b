"""Taking changed settings while running: on SIGHUP, or when a watched file changes, read again and apply.

A fault changes nothing: it is logged, and what was in force stays. What cannot change without a restart keeps its old
value and is named at every reload until the restart. So are variables (`as_started`): a process keeps those it was started
with, so that an edited environment file, of systemd say, is read at the next start only.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import structlog

from common import systemd
from common.exits import ConfigurationError
from common.service import Chosen, warn_of_retired
from common.settings import SettingsError, needing_restart

log = structlog.get_logger(__name__)
TICK_S = 1.0
"""Between two looks at the files."""
Stamp = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Change:
    """Why to read again: a signal `asked` for it, or these `files` are others than before."""

    asked: bool
    files: tuple[Path, ...]


def hangup_event() -> asyncio.Event:
    """An event that SIGHUP sets from now on."""
    event = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, event.set)
    return event


def changes(files: Callable[[], Iterable[Path | None]], hangup: asyncio.Event) -> AsyncGenerator[Change]:
    """Every reason to read again from now on, for ever.

    Args:
        files: The files to watch now; None stands for one that is not set.
        hangup: Set by SIGHUP; cleared here.
    """
    return _changes(files, hangup, _stamps(files()))


async def _changes(
    files: Callable[[], Iterable[Path | None]], hangup: asyncio.Event, seen: "dict[Path, Stamp]"
) -> AsyncGenerator[Change]:
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hangup.wait(), TICK_S)
        now = _stamps(files())
        changed = tuple(path for path in now if seen.get(path) != now[path])
        if changed or hangup.is_set():
            asked = hangup.is_set()
            hangup.clear()
            systemd.reloading()
            yield Change(asked, changed)
            systemd.ready()
        seen = _stamps(files()) | now  # other settings may name other files; what changed meanwhile counts as a change


class Reloader(Generic[Chosen]):
    """Keeps a service's settings up to date.

    Args:
        settings: What is in force.
        reread: Reads the settings again; raises SettingsError.
        apply: Puts settings in force; raises SettingsError or ConfigurationError, and has then changed nothing.
        files: Those that settings were read from, and those that they name; watched from now on.
        hangup: Set by SIGHUP.
        spared: Settings declared with `restart=True` that this service can change all the same.
        seen: Called after every reading, with `waiting` and `refused`.
        then: Called once settings are in force, with the names of those that changed, for what takes a while.

    `waiting` names those that have another value in the file by now; `refused` is why the last reading changed nothing.
    """

    def __init__(
        self,
        settings: Chosen,
        reread: Callable[[], Chosen],
        apply: Callable[[Chosen], None],
        *,
        files: Callable[[Chosen], Iterable[Path | None]],
        hangup: asyncio.Event,
        spared: Collection[str] = (),
        seen: Callable[[tuple[str, ...], str | None], None] = lambda _waiting, _refused: None,
        then: Callable[[Sequence[str], Change], Awaitable[None]] | None = None,
    ) -> None:
        self.settings = settings
        self._reread = reread
        self._apply = apply
        self.waiting: tuple[str, ...] = ()
        self.refused: str | None = None
        self._need_restart = needing_restart(type(settings)).difference(spared)
        self._seen = seen
        self._then = then
        self._changes = changes(lambda: files(self.settings), hangup)

    async def run(self) -> None:
        """Reload whenever there is a reason, for ever."""
        async for change in self._changes:
            await self.reload(change)

    async def reload(self, reason: Change) -> bool:
        """Take the settings as they are now; False when they have a fault and nothing changed."""
        try:
            read = await asyncio.to_thread(self._reread)
            names = [name for name in type(read).model_fields if getattr(read, name) != getattr(self.settings, name)]
            waiting = sorted(self._need_restart.intersection(names))
            kept = {name: getattr(self.settings, name) for name in waiting}
            settings = read.model_copy(update=kept)
            self._apply(settings)
        except (SettingsError, ConfigurationError) as error:
            log.error("config.refused", reason=str(error))
            self.refused = str(error)
            self._seen(self.waiting, self.refused)
            return False
        self.settings, self.waiting, self.refused = settings, tuple(waiting), None
        self._seen(self.waiting, None)
        changed = [name for name in names if name not in kept]
        log.info(
            "config.reloaded",
            changed=changed,
            need_restart=waiting,
            files=[str(path) for path in reason.files],
            as_started=read.from_environment,
        )
        warn_of_retired(settings)
        if self._then is not None:
            await self._then(changed, reason)
        return True


def _stamps(files: Iterable[Path | None]) -> dict[Path, Stamp]:
    """What tells one version of each file from the next: inode and time of change."""
    return {path: _stamp(path) for path in files if path is not None}


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
