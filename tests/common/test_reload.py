"""When settings are read again, what is put in force, and what a fault leaves alone."""

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from common import reload
from common.exits import ConfigurationError
from common.reload import Change, Reloader, changes, hangup_event
from common.service import ServiceSettings
from common.settings import SettingsError, option

ASKED = Change(asked=True, files=())


class Pace(ServiceSettings):
    """Settings of a service."""

    port: int = option(1, "Port.", restart=True)
    pace: int = option(1, "Pace.")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "TICK_S", 0.01)


@pytest.fixture
def told() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def no_files(_: Pace) -> list[Path]:
    return []


async def next_change(watch: Any) -> Change:
    async with asyncio.timeout(20):
        change: Change = await anext(watch)
        return change


async def test_a_changed_a_replaced_and_a_removed_file_are_told_by_name(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("1")
    watch = changes(lambda: (first, second, None), asyncio.Event())
    waiting = asyncio.ensure_future(next_change(watch))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    second.write_text("1")
    assert await waiting == Change(asked=False, files=(second,))
    (tmp_path / "new").write_text("2")
    (tmp_path / "new").replace(first)
    assert (await next_change(watch)).files == (first,)
    second.unlink()
    assert (await next_change(watch)).files == (second,)
    await watch.aclose()


async def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("1")
    watch = changes(lambda: (path,), asyncio.Event())
    waiting = asyncio.ensure_future(next_change(watch))
    await asyncio.sleep(0.05)
    path.write_text("22")
    await waiting
    path.write_text("333")  # while the caller works on the change before
    assert (await next_change(watch)).files == (path,)
    await watch.aclose()


async def test_sighup_asks_without_a_changed_file() -> None:
    watch = changes(lambda: (), hangup_event())
    waiting = asyncio.ensure_future(next_change(watch))
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGHUP)
    assert await waiting == Change(asked=True, files=())
    asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
    await watch.aclose()


async def test_what_changed_is_in_force_and_told(told: list[Any]) -> None:
    applied: list[Pace] = []
    reloader = Reloader(
        Pace(),
        lambda: Pace(port=2, pace=5),
        applied.append,
        files=no_files,
        hangup=asyncio.Event(),
    )
    assert await reloader.reload(Change(asked=False, files=(Path("f"),)))
    assert reloader.settings == Pace(port=1, pace=5) == applied[0]
    [line] = told
    assert line["event"] == "config.reloaded"
    assert (line["changed"], line["need_restart"], line["files"]) == (["pace"], ["port"], ["f"])


async def test_what_needs_a_restart_is_told_until_there_was_one(told: list[Any]) -> None:
    reloader = Reloader(Pace(), lambda: Pace(port=2), lambda _: None, files=no_files, hangup=asyncio.Event())
    await reloader.reload(ASKED)
    await reloader.reload(ASKED)
    assert [line["need_restart"] for line in told] == [["port"], ["port"]]


async def test_what_a_service_can_change_all_the_same_is_in_force_before_it_goes_on() -> None:
    steps: list[Any] = []

    async def then(changed: Sequence[str], reason: Change) -> None:
        steps.append((list(changed), reason))

    reloader = Reloader(
        Pace(), lambda: Pace(port=2), steps.append, files=no_files, hangup=asyncio.Event(), spared=["port"], then=then
    )
    assert await reloader.reload(ASKED)
    assert steps == [Pace(port=2), (["port"], ASKED)]
    assert reloader.waiting == ()


@pytest.mark.parametrize("error", [SettingsError("a: 'pace': must be a number"), ConfigurationError("token file x")])
@pytest.mark.parametrize("where", ["reading", "applying"])
async def test_a_fault_is_told_and_changes_nothing(where: str, error: Exception, told: list[Any]) -> None:
    def fail(*_: object) -> Pace:
        raise error

    def apply(settings: Pace) -> None:
        fail(settings)

    reread = fail if where == "reading" else lambda: Pace(pace=7)
    reloader = Reloader(Pace(), reread, apply, files=no_files, hangup=asyncio.Event())
    assert not await reloader.reload(ASKED)
    assert reloader.settings == Pace()
    assert told == [{"event": "config.refused", "reason": str(error), "log_level": "error"}]


async def test_it_goes_on_after_a_fault(tmp_path: Path) -> None:
    path, seen = tmp_path / "f", asyncio.Event()
    read: Iterator[Pace | SettingsError] = iter([SettingsError("bad"), Pace(pace=3)])
    path.write_text("1")

    def reread() -> Pace:
        found = next(read)
        if isinstance(found, SettingsError):
            raise found
        return found

    hangup = asyncio.Event()
    reloader = Reloader(Pace(), reread, lambda _: seen.set(), files=lambda _: (path,), hangup=hangup)
    running = asyncio.ensure_future(reloader.run())
    hangup.set()
    while hangup.is_set():
        await asyncio.sleep(0.01)
    path.write_text("22")
    await asyncio.wait_for(seen.wait(), 20)
    running.cancel()
    await asyncio.wait({running})
    assert reloader.settings == Pace(pace=3)
