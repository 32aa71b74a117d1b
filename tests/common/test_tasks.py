import asyncio

import pytest

from common.tasks import TaskFailed, TaskScope


async def for_ever() -> None:
    await asyncio.Event().wait()


def alive() -> list[str]:
    return sorted(task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("scope."))


async def test_leaving_the_scope_cancels_and_awaits_every_task() -> None:
    ended = []

    async def work() -> None:
        try:
            await for_ever()
        finally:
            ended.append(True)

    async with TaskScope("scope") as scope:
        scope.spawn("one", work(), service=True)
        scope.spawn("two", work())
        await asyncio.sleep(0)
        assert alive() == ["scope.one", "scope.two"]
    assert ended == [True, True]
    assert alive() == []


async def test_a_one_shot_task_may_end() -> None:
    async with TaskScope("scope") as scope:
        task = scope.spawn("one", asyncio.sleep(0))
        await task
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(scope.failed(), 0.01)


async def test_a_service_task_that_ends_fails_the_scope() -> None:
    async with TaskScope("scope") as scope:
        scope.spawn("one", asyncio.sleep(0), service=True)
        failure = await scope.failed()
    assert str(failure) == "task scope.one ended by itself"


async def test_a_task_that_raises_fails_the_scope_with_its_cause() -> None:
    async def work() -> None:
        raise KeyError("x")

    async with TaskScope("scope") as scope:
        scope.spawn("one", work())
        failure = await scope.failed()
    assert isinstance(failure, TaskFailed)
    assert isinstance(failure.__cause__, KeyError)
    assert "scope.one" in str(failure)


async def test_only_the_first_failure_is_told() -> None:
    async with TaskScope("scope") as scope:
        scope.spawn("one", asyncio.sleep(0), service=True)
        scope.spawn("two", asyncio.sleep(0), service=True)
        assert "scope.one" in str(await scope.failed())
        await asyncio.sleep(0)
        assert "scope.one" in str(await scope.failed())


async def test_a_failure_does_not_cancel_the_neighbours() -> None:
    async with TaskScope("scope") as scope:
        neighbour = scope.spawn("neighbour", for_ever())
        scope.spawn("one", asyncio.sleep(0), service=True)
        await scope.failed()
        assert not neighbour.done()


async def test_a_task_that_refuses_to_end_is_reported_by_name_and_left(capsys: pytest.CaptureFixture[str]) -> None:
    released = asyncio.Event()

    async def stubborn() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    async with TaskScope("scope", close_timeout_s=0.05) as scope:
        task = scope.spawn("stubborn", stubborn())
        await asyncio.sleep(0)
    assert not task.done()
    told = capsys.readouterr()
    assert "task.refused_to_end" in told.out + told.err
    assert "scope.stubborn" in told.out + told.err
    released.set()
    await task


async def test_a_task_may_close_its_own_scope() -> None:
    async with TaskScope("scope") as scope:
        neighbour = scope.spawn("neighbour", for_ever())
        await scope.spawn("closer", scope.close())
        assert neighbour.cancelled()


async def test_waiting_for_failure_needs_an_open_scope() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        await TaskScope("scope").failed()
