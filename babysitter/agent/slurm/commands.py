"""Slurm's own programs, each call bounded in time and output. Its input comes as arguments and by stdin, never by a shell."""

import asyncio
import os
import tempfile
from collections.abc import Mapping, Sequence

from babysitter.agent.runner import Refused
from babysitter.agent.slurm.job import FORMAT, TURNS, UNREACHED, number_in

TIMEOUT_S = 30.0
"""Three times Slurm's own MessageTimeout."""
WORDS_LIMIT = 300
OWN = ("SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_")
KEPT = ("SLURM_CONF",)


class SlurmAway(OSError):
    """Slurm cannot be asked; the text is its own."""


class SlurmCommands:
    """sbatch, squeue, scancel.

    Args:
        env: The agent's; what would change the commands' meaning is left out of it.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        rest = {name: value for name, value in env.items() if name in KEPT or not name.startswith(OWN)}
        self._env = {**rest, "TZ": "UTC", "LC_ALL": "C"}

    async def submit(self, arguments: Sequence[str], script: str) -> int:
        """The id of a new job.

        Raises:
            SlurmAway: It is not known whether there is one.
            Refused: There is none.
        """
        code, told, complaint = await self._run(["sbatch", *arguments], script.encode())
        number = number_in(told) if code == 0 else None
        if number is not None:
            return number
        words = _words(complaint or told)
        if code == 0 or UNREACHED.search(words):
            raise SlurmAway(words)
        raise Refused(words)

    async def jobs(self) -> str:
        """This user's jobs, those that ended a short time ago too.

        Raises:
            SlurmAway: It does not tell.
        """
        return await self._squeue("--states=all", f"--user={os.getuid()}", f"--Format={FORMAT}")

    async def queue(self) -> str:
        """Everybody's queued jobs, as far as they may be seen, the first to start first.

        Raises:
            SlurmAway: It does not tell.
        """
        return await self._squeue("--states=PENDING", "--sort=-p,i", f"--Format={TURNS}")

    async def cancel(self, number: int, *, queued: bool = False) -> None:
        """End a job; `queued`: only if it has not begun.

        Raises:
            SlurmAway: It is not known whether it ends.
        """
        _, _, complaint = await self._run(["scancel", *(["--state=PENDING"] if queued else []), str(number)])
        if UNREACHED.search(complaint):
            raise SlurmAway(_words(complaint))

    async def _squeue(self, *arguments: str) -> str:
        code, told, complaint = await self._run(["squeue", "--noheader", *arguments])
        if code != 0:
            raise SlurmAway(_words(complaint or told))
        return told

    async def _run(self, argv: Sequence[str], stdin: bytes = b"") -> tuple[int, str, str]:
        # A file, no pipe: who ends before it has read all of its input breaks nothing then.
        with tempfile.TemporaryFile() as source:
            source.write(stdin)
            source.seek(0)
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=source,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env=self._env,
                )
            except OSError as error:
                raise SlurmAway(f"{argv[0]}: {error.strerror or error}") from error
        try:
            async with asyncio.timeout(TIMEOUT_S):
                told, complaint = await process.communicate()
        except TimeoutError as error:
            raise SlurmAway(f"{argv[0]} did not answer within {TIMEOUT_S:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, told.decode(errors="replace"), complaint.decode(errors="replace")


def _words(text: str) -> str:
    """What it said, in one line."""
    lines = dict.fromkeys(line.strip() for line in text.splitlines() if line.strip())
    return "; ".join(lines)[:WORDS_LIMIT] or "it says nothing"
