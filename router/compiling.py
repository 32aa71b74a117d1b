"""The master's side of the compiled data plane: build it once per version, in the background, then renew the workers."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping

import structlog

from common import own_python
from router import compiled
from router.settings import RouterSettings
from router.workers import WorkerPool

log = structlog.get_logger(__name__)
NICENESS = 19


async def have_compiled(pool: WorkerPool, settings: RouterSettings) -> None:
    """Build if it is wanted, missing and possible; workers that serve meanwhile run the sources, and are replaced."""
    if not settings.compiled or compiled.folder().is_dir():
        return
    try:
        compiled.check_tools()
        log.info("workers.compiling", modules=len(compiled.MODULES))
        await _build_aside(pool.environment)
    except compiled.CannotCompile as error:
        log.info("workers.not_compiled", reason=str(error))
        return
    log.info("workers.compiled")
    await pool.roll()


async def _build_aside(environment: Mapping[str, str]) -> None:
    """`python -m router.compiled` at the lowest priority; ended with us."""
    # asyncio's own would leave the process behind when it is cancelled while that starts.
    with subprocess.Popen(  # noqa: ASYNC220, S603 - starting takes milliseconds; our own interpreter and program
        own_python.command("router.compiled"),
        cwd=compiled.PACKAGE.parent,
        env=own_python.environment(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
            _, said = await asyncio.to_thread(process.communicate)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the compiler too
    if process.returncode:
        raise compiled.CannotCompile(said.decode(errors="replace").strip())
