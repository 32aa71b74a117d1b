"""The commands we run besides the server: filled in, time-boxed, their groups ended."""

import time

from babysitter.jobs import run


async def test_outcome_has_code_and_output() -> None:
    outcome = await run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=5)
    assert (outcome.code, outcome.output) == (3, "out\nerr")


async def test_missing_command_is_an_outcome() -> None:
    outcome = await run(["no-such-command"], timeout_s=5)
    assert outcome.code is None
    assert "cannot run no-such-command" in outcome.output


async def test_slow_command_is_ended_with_its_children() -> None:
    began = time.monotonic()
    outcome = await run(["sh", "-c", "sleep 30 & sleep 30"], timeout_s=0.2)
    assert outcome.code is None
    assert "longer than 0.2 s" in outcome.output
    assert time.monotonic() - began < 3
