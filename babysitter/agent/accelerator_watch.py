"""The node's accelerators as the agent knows them: told or found, read now and then, and what hand-made files claim."""

import asyncio
import contextlib
import glob
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import structlog

from babysitter.agent import nvml
from babysitter.agent.accelerators import (
    Device,
    Held,
    Hold,
    Lacking,
    Need,
    Taken,
    choose,
    claimed_value,
    environment,
    glance,
    indices_in,
)
from babysitter.agent.aside import Aside
from babysitter.agent.settings import AcceleratorSettings
from common.http.errors import ApiError
from common.settings import SettingsError, read_file
from common.wire.deployment import Accelerator, AcceleratorReading
from common.wire.fault import NO_ACCELERATORS

log = structlog.get_logger(__name__)
FIND_TIMEOUT_S = 15.0
"""A driver that nobody keeps loaded takes seconds to begin."""
READ_TIMEOUT_S = 5.0
CLAIM_FILES_MOST = 1000
RETRY = {"Retry-After": "5"}


class AcceleratorWatch:
    """What the node has; who has it, the manager knows.

    Args:
        settings: The operator's.
        env: The agent's environment: where it has the assigning variable, only those accelerators are ours to give.
        interval_s: Between two looks.
    """

    def __init__(self, settings: AcceleratorSettings, env: Mapping[str, str], *, interval_s: float) -> None:
        self._settings = settings
        self._interval_s = interval_s
        self._allowed = self._inherited(env)
        self._driver, self._files = Aside("nvml"), Aside("claims")
        self._said = ""
        self.devices: tuple[Device, ...] = ()
        self.readings: list[AcceleratorReading] = []
        self.claims: dict[str, frozenset[int]] = {}
        """By file, as far as it could ever be read."""
        self._unread: dict[str, str] = {}
        if settings.count is not None:
            self._take(settings.kind or "", [settings.memory_mb or 0] * self._reach(settings.count))

    def environment(self, indices: list[int]) -> dict[str, str]:
        """What a replica's server is told of its accelerators."""
        return environment(self._settings.assigning, indices, hide=self._settings.hide) if self.devices else {}

    def choose(self, need: Need, holds: Sequence[Hold]) -> list[int]:
        """Accelerators for one more replica beside those that hold some.

        Raises:
            ApiError: 422, the node never has what is needed; 503, it is not free.
        """
        try:
            return choose(self.devices, Held(holds, self.claims), need)
        except Lacking as error:
            details = [{"field": error.field, "problem": str(error)}]
            text = f"field {error.field!r}: {error}"
            raise ApiError(422, text, field=error.field, details=details, code=NO_ACCELERATORS) from error
        except Taken as error:
            raise ApiError(503, str(error), code=NO_ACCELERATORS, headers=RETRY) from error

    def glance(self, holds: Sequence[Hold]) -> list[Accelerator]:
        """The accelerators, and who has them."""
        return glance(self.devices, Held(holds, self.claims))

    async def keep(self) -> None:
        """Look now and then, for ever."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.look()

    async def look(self) -> None:
        """Find accelerators, read them, and see who claims them; whatever hangs is given up in time and said."""
        await self._read_driver()
        with contextlib.suppress(ApiError):  # said in the log; a create call that needs to know is refused with it
            await self.read_claims()

    async def read_claims(self) -> None:
        """See what hand-made files claim now.

        Raises:
            ApiError: 503; they cannot be read in time, or what one claims was never known. Nothing can be given safely.
        """
        if not self._settings.claims:
            return
        try:
            files = await self._files.call(self._claimed, timeout_s=READ_TIMEOUT_S)
        except TimeoutError:
            reason = f"the files of accelerators.claims were not read within {READ_TIMEOUT_S:g} s"
            self._tell_unread({"accelerators.claims": reason})
            raise ApiError(503, reason, code=NO_ACCELERATORS, headers=RETRY) from None
        claims, unread = {}, {}
        for name, value in files.items():
            if isinstance(value, SettingsError):
                unread[name] = str(value)
                if name in self.claims:
                    claims[name] = self.claims[name]
            else:
                claims[name] = indices_in(value, (device.index for device in self.devices))
        self.claims = claims
        self._tell_unread(unread)
        unknown = next((name for name in unread if name not in claims), None)
        if unknown is not None:
            reason = f"nobody knows which accelerators a file claims: {unread[unknown]}"
            raise ApiError(503, reason, code=NO_ACCELERATORS, headers=RETRY)

    def _tell_unread(self, unread: dict[str, str]) -> None:
        for name in unread.keys() - self._unread.keys():
            log.warning("accelerators.claims_unreadable", file=name, reason=unread[name], known=name in self.claims)
        self._unread = unread

    def _claimed(self) -> dict[str, str | SettingsError]:
        """What each file of `claims` gives the variable; a file that claims nothing has an empty text. Blocks."""
        found: dict[str, str | SettingsError] = {}
        names = (name for pattern in self._settings.claims for name in sorted(glob.glob(pattern)))  # noqa: PTH207 - absolute patterns
        for name in islice(names, CLAIM_FILES_MOST):
            try:
                content = read_file(Path(name))
            except SettingsError as error:
                if Path(name).exists():
                    found[name] = error
                continue
            found[name] = claimed_value(content, self._settings.assigning) if isinstance(content, Mapping) else ""
        return found

    async def _read_driver(self) -> None:
        """NVML's word: the devices where the settings do not tell, and every reading."""
        if (self._settings.kind or "cuda") != "cuda" or self._settings.count == 0:
            return
        timeout_s = READ_TIMEOUT_S if self.devices else FIND_TIMEOUT_S
        try:
            found = await self._driver.call(nvml.look, timeout_s=timeout_s)
        except (nvml.NoDriver, TimeoutError) as error:
            self.readings = []
            self._say(str(error) or f"the driver did not answer within {timeout_s:g} s")
            return
        self._said = ""
        if self._settings.count is None and len(found) > len(self.devices):
            told = self._settings.memory_mb
            self._take("cuda", [told or one.memory_mb for one in found])
            log.info("accelerators.found", count=len(self.devices), memory_mb=[it.memory_mb for it in self.devices])
        ours = {device.index for device in self.devices}
        self.readings = [one.reading for one in found if one.reading.index in ours]
        if self._settings.memory_mb is None:
            self.devices = tuple(
                replace(it, memory_mb=found[it.index].memory_mb or it.memory_mb) if it.index < len(found) else it
                for it in self.devices
            )

    def _say(self, reason: str) -> None:
        """Once for each reason in a row. That there is no driver is no fault where nobody told of accelerators."""
        if reason != self._said:
            self._said = reason
            if self.devices:
                log.warning("accelerators.not_read", reason=reason)
            else:
                log.info("accelerators.none_found", reason=reason)

    def _take(self, kind: str, memory_mb: list[int]) -> None:
        self.devices = tuple(
            Device(index, kind, size)
            for index, size in enumerate(memory_mb)
            if self._allowed is None or index in self._allowed
        )

    def _reach(self, count: int) -> int:
        """How far the indices go: `count` of those that the agent itself was given, else from 0 on."""
        if self._allowed is None or not count:
            return count
        return max(sorted(self._allowed)[:count], default=-1) + 1

    def _inherited(self, env: Mapping[str, str]) -> frozenset[int] | None:
        """The accelerators that the agent's environment leaves it; None: all. None of them where it names them otherwise."""
        variable = self._settings.assigning
        if variable not in env:
            return None
        indices = indices_in(env[variable], (-1,))
        if -1 in indices:
            log.error("accelerators.variable_unreadable", variable=variable, value=env[variable][:100])
        return indices - {-1}
