"""Reports one stage of a deployment: its beginning, its progress and its end, to a callback and to deploy.log."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog
from msgspec.structs import replace

from babysitter.stages import with_detail
from common.clock import Clock, iso
from common.wire.replica import Stage
from common.wire.words import StageState

log = structlog.get_logger(__name__)
PROGRESS_S = 0.5
"""The shortest time between two reports of a running stage."""
LOG_LIMIT_BYTES = 16 << 20


class StageReporter:
    """Reports one stage: `tell` gets it at its beginning, at its end, and every `PROGRESS_S` at most between."""

    def __init__(self, name: str, attempt: int, tell: Callable[[Stage], None], clock: Clock, path: Path) -> None:
        self._stage = Stage(name=name, state=StageState.RUNNING, began_at=iso(clock.utcnow()), attempt=attempt)
        self._tell, self._clock, self._path = tell, clock, path
        self._began = clock.monotonic()
        self._told = self._began
        tell(self._stage)
        log.info("deploy.stage", stage=name, attempt=attempt)

    def say(self, line: str) -> None:
        """The latest line of output, kept in `deploy.log` as well."""
        if not line.strip():
            return
        self._stage = with_detail(self._stage, line.strip())
        with suppress(OSError):
            if not self._path.exists() or self._path.stat().st_size < LOG_LIMIT_BYTES:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(f"{iso(self._clock.utcnow())} {self._stage.name}: {line}\n")
        now = self._clock.monotonic()
        if now - self._told >= PROGRESS_S:
            self._told = now
            self._tell(self._with(self._stage.state))

    def end(self, state: StageState, detail: str | None) -> None:
        """The stage is over, in this state."""
        if detail is not None:
            self._stage = with_detail(self._stage, detail)
        self._tell(self._with(state))
        log.info("deploy.stage_over", stage=self._stage.name, state=state, detail=self._stage.detail)

    def _with(self, state: StageState) -> Stage:
        return replace(self._stage, state=state, took_s=round(self._clock.monotonic() - self._began, 3))
