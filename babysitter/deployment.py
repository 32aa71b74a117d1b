"""Making the environment of a server that needs one: begun, told stage by stage, cut short, and cleared up after."""

import asyncio
from collections.abc import Awaitable, Callable

from babysitter import events as ev
from babysitter import identity
from babysitter.attempt import ServerCommand
from babysitter.memory import Memory
from babysitter.spec import DeployError, Spec
from babysitter.stages import put
from common.tasks import TaskScope
from common.wire.replica import Stage


class Deployment:
    """Runs the spec's deployer; however that ends, the machine hears of it.

    Args:
        memory: Its stages and mark are kept there.
        tell: Takes events.
        persist: Writes the memory to disk.
        made: Takes the command that was made.
        seen: Called when a stage has news.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        tell: Callable[[ev.Event], None],
        persist: Callable[[], Awaitable[None]],
        made: Callable[[ServerCommand], None],
        seen: Callable[[], None],
    ) -> None:
        self._memory = memory
        self._tell = tell
        self._persist = persist
        self._made = made
        self._seen = seen
        self._task: asyncio.Task[None] | None = None

    async def begin(self, scope: TaskScope, spec: Spec) -> None:
        """Begin; what could be left of it is on disk before."""
        self._memory.stages = []
        self._memory.deploying = spec.deploy_mark
        await self._persist()
        self._task = scope.spawn("deploy", self._deploy(spec))

    def abort(self) -> None:
        """Stop making it."""
        if self._task is not None:
            self._task.cancel()

    async def end_old(self) -> None:
        """End the tools of a deployment that its babysitter did not live to see through (B16)."""
        if self._memory.deploying is not None:
            await asyncio.to_thread(identity.end_bearers, self._memory.deploying)
            self._memory.deploying = None

    async def _deploy(self, spec: Spec) -> None:
        event: ev.Event = ev.DeployFailed("the deployment was cut")
        try:
            if spec.deployer is not None:
                self._made(await spec.deployer.deploy(self._on_stage))
            event = ev.Deployed()
        except DeployError as error:
            event = ev.DeployFailed(str(error))
        finally:
            self._memory.deploying = None
            self._tell(event)

    def _on_stage(self, stage: Stage) -> None:
        self._memory.stages = put(self._memory.stages, stage)
        self._seen()
