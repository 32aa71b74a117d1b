"""Cancelling the cluster jobs that a dead server left behind: a configured command, once per id, result recorded."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

OUTPUT_LIMIT_BYTES = 2048


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended: its exit code (None: it could not run or took too long) and the end of what it said."""

    code: int | None
    output: str


async def run(argv: Sequence[str], *, timeout_s: float, limit_bytes: int = OUTPUT_LIMIT_BYTES) -> CommandResult:
    """Run a helper command, time-boxed; its whole group is ended when its time is over.

    The last `limit_bytes` of its output are kept.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return CommandResult(None, f"cannot run {argv[0]}: {error.strerror}")
    try:
        raw, _ = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError:
        return CommandResult(None, f"took longer than {timeout_s:g} s")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return CommandResult(process.returncode, raw[-limit_bytes:].decode("utf-8", "replace").strip())
