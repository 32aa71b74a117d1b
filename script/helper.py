"""What the launch scripts do, by svcctl's launcher; and what of it needs more than one room.

    helper.py up registry|router|agent|babysitter|all [NAME=VALUE…] [-- FILE…]
    helper.py down registry|router|agent|babysitter|all [PORT|NAME]
    helper.py status

A NAME=VALUE stands over the environment: a script's own block, and what a sourced script has without exporting it.
`babysitter` is launch_babysitter.sh's, `all` with its FILEs launch_all.sh's. The state directory is the project's folder.
"""

import asyncio
import difflib
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from babysitter.settings import BabysitterSettings, parse
from common.exits import ConfigurationError, Exit
from common.settings import SettingsError
from ctl.codes import Code
from ctl.launcher.launch import CannotStart
from ctl.launcher.plan import BABYSITTER, BabysitterFile
from ctl.launcher.scripts import Script, Stop, down, up, warn
from ctl.launcher.variables import Variables, WrongVariable
from ctl.problem import Problem

READ_BY_SCRIPTS = {"SVC_VENV", "SVC_SETUP", "SVC_COMPILE", "SVC_PYTHON_FOR_VENV", "SVC_STATE_DIR"}


def read(file: str) -> BabysitterFile:
    """A babysitter's file, read whole.

    Raises:
        Stop: It is of no use.
    """
    try:
        settings = parse(["--config-file", file], os.environ)
    except SettingsError as error:
        raise Stop(Exit.CONFIG, *(f"error: {line}" for line in str(error).splitlines())) from None
    return BabysitterFile(
        file, settings.name, settings.port, settings.host, scheme="https" if settings.tls_cert_file else "http"
    )


def tell_unread() -> None:
    """Name the `SVC_…` variables that no part of the suite reads."""
    if not any(name.startswith("SVC_") and name not in READ_BY_SCRIPTS for name in os.environ):
        return
    from babysitter.agent.settings import AgentSettings  # noqa: PLC0415 - all of it takes long to import
    from common.settings import SERVICE_PREFIXES, Settings, unknown_variables  # noqa: PLC0415
    from registry.settings import RegistrySettings  # noqa: PLC0415
    from router.settings import RouterSettings  # noqa: PLC0415

    models: tuple[type[Settings], ...] = (RegistrySettings, RouterSettings, BabysitterSettings, AgentSettings)
    unread: dict[str, list[str]] = {}
    for prefix, model in zip(SERVICE_PREFIXES, models, strict=True):
        for name, meant in unknown_variables(model, prefix, os.environ).items():
            unread.setdefault(name, []).extend([meant] if meant else [])
    for name, similar in sorted(unread.items()):
        closest = "".join(f"; did you mean {meant}?" for meant in difflib.get_close_matches(name, similar, n=1))
        warn(f"warning: nobody reads {name}{closest}")


def work(command: str, words: Sequence[str]) -> Coroutine[Any, Any, int]:
    """The command's work."""
    end = words.index("--") if "--" in words else len(words)
    pairs = dict(word.split("=", 1) for word in words[1:end] if "=" in word)
    script = Script(Path(__file__).resolve().parents[1], os.environ, Variables({**os.environ, **pairs}), read)
    if command == "status":
        return down.status(script)
    if command == "down":
        return down.down(script, *words)
    tell_unread()
    if words[0] == "all":
        return up.everything(script, words[end + 1 :])
    return up.template(script) if words[0] == BABYSITTER else up.service(script, words[0])


async def run(command: str, words: Sequence[str]) -> int:
    """Do it; SIGTERM ends it as Ctrl-C does."""
    task = asyncio.ensure_future(work(command, words))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def main() -> int:
    """Dispatch; returns the script's exit code."""
    try:
        return asyncio.run(run(sys.argv[1], sys.argv[2:]))
    except Stop as end:
        for line in end.lines:
            warn(line)
        return end.code
    except (WrongVariable, ConfigurationError) as error:
        warn(f"error: {error}")
        return Exit.CONFIG
    except CannotStart as failure:
        up.tell_failure(failure)
        return failure.ended_with
    except Problem as problem:
        warn(f"error: {problem.line()}")
        return int(problem.code)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return Code.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
