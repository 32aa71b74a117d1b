"""What was launched here: `logs/NAME.pid` holds the pid, and the environment of that process what proves that it is ours.

The launch scripts and svcctl share this: what one starts the other sees and stops. A pid alone proves nothing: pids are
used again, and a stranger must never be ended. Ours has the folder and the name of the launch in its environment (which
its children inherit), and runs the module that belongs to the name (which they do not).
"""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from os import close
from pathlib import Path
from urllib.parse import urlsplit

from common import lock_file
from common.atomic_file import read_bounded, write_atomic
from ctl.codes import Code
from ctl.launcher.plan import BABYSITTER, MODULES, Part
from ctl.problem import Problem

MARK, OLD_MARK = "SVC_LAUNCHED", "SVCCTL_MARK"
"""FOLDER:NAME of a launch. Svcctl used to mark its processes with a uuid, which stood in `run/NAME.json`."""
LAUNCHED_AS = "SVC_LAUNCHED_AS"
"""PORT URL WHAT-IT-SERVES of a launch."""
_LIMIT_BYTES = 64 << 10
_OLD_MEMBERS = ("name", "kind", "pid", "mark", "log", "port", "url", "serves")


@dataclass(frozen=True, slots=True)
class Launched:
    """One process that was launched here.

    `mark` is the variable that makes it ours, and its value. `port` is its service's or its server's, `url` where it
    answers, `serves` what to tell of it; 0 and empty for one that does not run any more.
    """

    name: str
    kind: str
    pid: int
    mark: tuple[str, str]
    log: str
    port: int = 0
    url: str = ""
    serves: str = ""

    def is_called(self, word: str) -> bool:
        """It goes by this word: its name, the port, or the name of what it serves."""
        return word in (self.name, self.name.replace("_", "-"), str(self.port), self.serves.partition(" at ")[0])

    def is_ours(self) -> bool:
        """The process runs, and is the one that was launched under this name."""
        variable, value = self.mark
        return environment_of(self.pid).get(variable) == value and runs(self.pid, MODULES[self.kind])

    @property
    def own_port(self) -> int:
        """Where it answers itself."""
        return urlsplit(self.url).port or 0


class StateDir:
    """The state directory: of svcctl, or the project's folder, where the scripts launch.

    Args:
        root: It; made on the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.logs = self.root / "logs"

    def prepare(self) -> None:
        """Make the directories, the first for this user only.

        Raises:
            Problem: They cannot be made.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.logs, self.root / "data"):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise Problem(
                f"{self.root}: {error.strerror}", hint="choose another place with --state-dir", code=Code.CONFIG
            ) from error

    def all(self) -> list[Launched]:
        """Everything that was launched and not ended by us, alive or not."""
        own = [self._read(path) for path in sorted(self.logs.glob("*.pid"))]
        older = [_read_old(path) for path in sorted(self.root.glob("run/*.json"))]
        return [launched for launched in (*own, *older) if launched is not None]

    def get(self, name: str) -> Launched | None:
        """One of them."""
        return next((one for one in self.all() if name in (one.name, one.name.replace("-", "_"))), None)

    def mark(self, name: str) -> tuple[str, str]:
        """What makes a process the one of that name here."""
        return MARK, f"{self.root}:{name}"

    def put(self, part: Part, pid: int) -> Launched:
        """Remember a process."""
        write_atomic(self.logs / f"{part.name}.pid", f"{pid}\n".encode(), mode=0o644)
        log = str(self.logs / part.log)
        return Launched(part.name, part.kind, pid, self.mark(part.name), log, part.ports[0], part.url, part.serves)

    def forget(self, name: str) -> None:
        """It is gone."""
        for path in (self.logs / f"{name}.pid", self.root / "run" / f"{name}.json"):
            path.unlink(missing_ok=True)

    @asynccontextmanager
    async def locked(self, patience_s: float = 0.0) -> AsyncIterator[None]:
        """One launch at a time.

        Raises:
            Problem: Another one is at work, and was not done in time.
        """
        deadline = time.monotonic() + patience_s
        while True:
            try:
                descriptor = lock_file.take(self.logs / ".lock")
                break
            except lock_file.Held as held:
                if time.monotonic() >= deadline:
                    message = f"another launch works in {self.root}{held.by}"
                    raise Problem(message, hint="wait for it and try again") from held
            import asyncio  # noqa: PLC0415 - TAB looks for addresses here, and waits for no lock

            await asyncio.sleep(lock_file.POLL_S)
        try:
            yield
        finally:
            close(descriptor)

    def _read(self, path: Path) -> Launched | None:
        """What a pid file and the process that it names tell; None for what the scripts launch for others, as etcd."""
        name = path.stem
        kind = name.partition("_")[0]
        if kind not in MODULES:
            return None
        try:
            text = read_bounded(path, limit_bytes=_LIMIT_BYTES).split()
            pid = int(text[0]) if len(text) == 1 else 0
        except (OSError, ValueError):
            pid = 0
        launched = Launched(name, kind, max(0, pid), self.mark(name), str(self._last_log(name, kind)))
        if not launched.is_ours():
            return launched
        port, url, serves = (environment_of(pid).get(LAUNCHED_AS, "0") + "  ").split(" ", 2)
        log = str(self.logs / f"{kind}_{port}.log")
        return replace(launched, log=log, port=int(port), url=url, serves=serves.rstrip())

    def _last_log(self, name: str, kind: str) -> Path:
        """Where a process logged that does not tell its port any more."""
        logs = sorted(self.logs.glob(f"{kind}_*.log"), key=lambda log: log.stat().st_mtime)
        return logs[-1] if logs and kind != BABYSITTER else self.logs / f"{name}.log"


def _read_old(path: Path) -> Launched | None:
    """What an earlier svcctl wrote of a process: an upgrade must not lose what runs."""
    try:
        record = json.loads(read_bounded(path, limit_bytes=_LIMIT_BYTES))
        name, kind, pid, mark, log, port, url, serves = (record[member] for member in _OLD_MEMBERS)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return Launched(name, kind, pid, (OLD_MARK, mark), log, port, url, serves) if kind in MODULES else None


def environment_of(pid: int) -> dict[str, str]:
    """The environment of a process; empty when there is none, or it is not ours to look at."""
    return dict(word.split("=", 1) for word in _words(pid, "environ") if "=" in word)


def runs(pid: int, module: str) -> bool:
    """The process is `python -m MODULE`. A zombie has no command line."""
    words = _words(pid, "cmdline")
    return any(words[at : at + 2] == ["-m", module] for at in range(len(words)))


def _words(pid: int, name: str) -> list[str]:
    try:
        raw = Path(f"/proc/{pid}/{name}").read_bytes() if pid > 0 else b""
    except OSError:
        return []
    return raw.decode("utf-8", "surrogateescape").split("\0")
