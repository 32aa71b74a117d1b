"""A server that is no process of its command's (a container, say): its health tells how it is, a command ends it (W25)."""

import structlog

from babysitter import jobs
from babysitter.attempt import ServerAttempt
from babysitter.events import Exited
from babysitter.lifecycle import ALIVE, PROBED, SLEEPING, ReplicaState
from babysitter.spec import Spec

log = structlog.get_logger(__name__)
STOP_COMMAND_MARGIN_S = 10.0
"""How much longer than the grace a stop command may take."""


class External:
    """What is known of the server, if `spec` says that it is another program's.

    `is_detached`: our command has done its work, so that the server has no process of ours.
    """

    def __init__(self, spec: Spec) -> None:
        self.is_detached = False
        self._stop_command = spec.stop_command
        self._grace_s = spec.grace_s

    def __bool__(self) -> bool:
        """True when the server is another program's."""
        return bool(self._stop_command)

    def reload(self, spec: Spec) -> None:
        """As `spec` says from now on; a server without a process of ours keeps the command that can end it."""
        self._grace_s = spec.grace_s
        if spec.stop_command or not self.is_detached:
            self._stop_command = spec.stop_command

    def recall(self, attempt: ServerAttempt | None, state: str) -> bool:
        """Whether an earlier babysitter's server is there without a process of ours: its command ended well while it lived."""
        self.is_detached = (
            bool(self) and attempt is not None and attempt.has_ended and attempt.outcome().code == 0
        ) and state in {alive.value for alive in ALIVE}
        return self.is_detached

    def goes_on(self, ended: Exited, state: ReplicaState) -> bool:
        """Whether the server goes on though our command has ended so."""
        if ended.code == 0 and state in PROBED | SLEEPING:
            log.info("server.detached")
            self.is_detached = True
        return self.is_detached

    async def stop(self) -> None:
        """End it, whatever its command has come to."""
        result = await jobs.run(self._stop_command, timeout_s=self._grace_s + STOP_COMMAND_MARGIN_S)
        if result.code != 0:
            log.warning("server.stop_command_failed", code=result.code, output=result.output[-200:])
