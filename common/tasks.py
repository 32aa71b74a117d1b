"""A task scope: every task has a name and an owner, ends by cancellation, and is awaited with a deadline.

`asyncio.TaskGroup` waits for ever for a task that swallows its cancellation, and cancels whoever opened it when a
child fails. A server wants neither: it must report the stubborn task by name and go on shutting down, and it must
drain its clients before it ends. Hence this small owner, which hands a child's failure to `failed()`.
"""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

import structlog

log = structlog.get_logger(__name__)


class TaskFailed(RuntimeError):
    """A task that must run until it is cancelled ended by itself; the cause is chained."""


class TaskScope:
    """Owns named background tasks; leaving the scope cancels and awaits them.

    Args:
        name: Appears in logs and in the tasks' names.
        close_timeout_s: How long a cancelled task may take before it is reported and left behind.
    """

    def __init__(self, name: str, *, close_timeout_s: float = 5.0) -> None:
        self._name = name
        self._close_timeout_s = close_timeout_s
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failed: asyncio.Future[TaskFailed] | None = None

    async def __aenter__(self) -> Self:
        self._failed = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def spawn(self, name: str, work: Coroutine[Any, Any, Any], *, service: bool = False) -> asyncio.Task[Any]:
        """Start `work` as a task of this scope.

        Args:
            name: What the task does, for logs.
            work: The coroutine.
            service: True for a task that must run until it is cancelled: its ending, with or without an error, is a
                failure of the scope. A one-shot task fails the scope only by raising.
        """
        task = asyncio.get_running_loop().create_task(work, name=f"{self._name}.{name}")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, service=service))
        return task

    async def failed(self) -> TaskFailed:
        """Wait for the first failure of a task (for ever, if there is none)."""
        if self._failed is None:
            raise RuntimeError(f"task scope {self._name!r} is not open")
        return await asyncio.shield(self._failed)

    async def close(self) -> None:
        """Cancel every task and await it; a task that outlives the deadline is reported by name."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if not tasks:
            return
        _, stubborn = await asyncio.wait(tasks, timeout=self._close_timeout_s)
        for task in stubborn:
            log.error("task.refused_to_end", task=task.get_name(), after_s=self._close_timeout_s)

    def _ended(self, task: asyncio.Task[Any], *, service: bool) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None and not service:
            return
        failure = TaskFailed(f"task {task.get_name()} " + (f"failed: {error!r}" if error else "ended by itself"))
        failure.__cause__ = error
        log.error("task.failed", task=task.get_name(), exc_info=error)
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(failure)
