"""Does the engine behind the server still work? A token proves it when it begins, when it is idle, and when in doubt.

A busy engine is not asked: its own counters say whether it moves, and where it tells none, a client's connection is
reason enough to leave it alone. But an engine that has requests and does not move, and one of which the routers say
that nothing comes back, must show that it can (W26, W45).
"""

import asyncio
from http import HTTPStatus

import aiohttp

from babysitter import ports
from babysitter.engine_metrics import Work, parse_work
from babysitter.probe import ABSENT
from babysitter.token_probe import TokenProbe
from common.clock import Clock
from common.http.client import read_bounded

METRICS_LIMIT_BYTES = 8 << 20
METRICS_TIMEOUT_S = 5.0


class EngineHealth:
    """Looks at one engine.

    Args:
        token: Asks it for a token.
        session: The process's session.
        clock: Time.
        metrics_path: Where it may tell of its work, which is learned from its answer; None: nowhere.
        start_timeout_s: How long its first token may take, and each of an engine that does not tell of its work.
        idle_timeout_s: How long a token may take that was asked of an engine with nothing to do.
        interval_s: Time without a sign of work after which it is asked; None: never.
    """

    def __init__(
        self,
        token: TokenProbe,
        session: aiohttp.ClientSession,
        *,
        clock: Clock,
        metrics_path: str | None,
        start_timeout_s: float,
        idle_timeout_s: float,
        interval_s: float | None,
    ) -> None:
        self.work: Work | None = None
        self._token = token
        self._session = session
        self._clock = clock
        self._metrics_path = metrics_path
        self._is_silent = False
        """It answered there, and told nothing."""
        self._start_timeout_s = start_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._interval_s = interval_s
        self._moved_at = clock.monotonic()
        self._is_doubted = False

    def doubt(self) -> None:
        """Somebody got no answer: the next look asks for a token, whatever there is to do."""
        self._is_doubted = True

    async def start(self, base_url: str, model: str) -> None:
        """Prove an engine that has just come up.

        Raises:
            NotReady: It makes no token.
        """
        self.work, self._is_silent = None, False
        await self._ask(base_url, model, self._start_timeout_s)

    async def look(self, base_url: str, model: str, port: int) -> None:
        """Prove an engine that serves, if it is time to.

        Raises:
            NotReady: It makes no token.
        """
        await self._read_work(base_url)
        if await self._is_due(port):
            timeout_s = self._start_timeout_s if self.work is None else self._idle_timeout_s
            await self._ask(base_url, model, timeout_s)

    async def _ask(self, base_url: str, model: str, timeout_s: float) -> None:
        self._is_doubted = True  # until it has answered
        await self._token.ask(base_url, model, timeout_s=timeout_s)
        self._saw_it_move()

    def _saw_it_move(self) -> None:
        self._is_doubted = False
        self._moved_at = self._clock.monotonic()

    async def _is_due(self, port: int) -> bool:
        if not self._token.is_wanted:
            return False
        if self._is_doubted:
            return True
        if self._interval_s is None or self._clock.monotonic() - self._moved_at < self._interval_s:
            return False
        if self.work is None:
            return not await asyncio.to_thread(ports.clients, port)
        return self.work.steps is not None or not (self.work.running or self.work.waiting)

    async def _read_work(self, base_url: str) -> None:
        before, self.work = self.work, None
        if self._metrics_path is None or self._is_silent:
            return
        timeout = aiohttp.ClientTimeout(total=METRICS_TIMEOUT_S)
        try:
            async with self._session.get(base_url + self._metrics_path, timeout=timeout) as answer:
                text = (await read_bounded(answer, METRICS_LIMIT_BYTES)).decode(errors="replace")
        except (aiohttp.ClientError, OSError, TimeoutError):
            return  # the engine tells nothing, which `None` says
        self.work = parse_work(text)
        self._is_silent = self.work is None and answer.status in (HTTPStatus.OK, *ABSENT)
        if self.work and before and self.work.steps is not None and self.work.steps > (before.steps or 0.0):
            self._saw_it_move()
