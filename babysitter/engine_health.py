"""Does the engine behind the server still work? A token proves it when it begins, when it is idle, and when in doubt.

A busy engine is not asked: its own counters say whether it moves, and where it tells none, a client's connection is
reason enough to leave it alone. But an engine that has requests and does not move, and one of which the routers say
that nothing comes back, must show that it can (W26, W45).
"""

import asyncio
import math
from http import HTTPStatus

import aiohttp
import structlog

from babysitter import ports
from babysitter.engine_metrics import Work, parse_work
from babysitter.probe import ABSENT
from babysitter.token_probe import TokenProbe
from common.clock import Clock
from common.exposition import ACCEPT, PAGE_LIMIT_BYTES, UnreadablePage, text_of
from common.http.client import AnswerTooLarge, read_bounded

log = structlog.get_logger(__name__)
METRICS_TIMEOUT_S = 5.0
UNREADABLE_PAUSE_S = 60.0
"""After metrics that cannot be read: an endless one would take its time and its bytes at every look."""


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
        self._read_again_at = 0.0
        """When its metrics are worth a look again: never, once it answered there and told nothing."""
        self._has_warned = False
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
        self.work, self._read_again_at, self._has_warned = None, 0.0, False
        await self._ask(base_url, model, self._start_timeout_s)

    async def look(self, base_url: str, model: str, port: int) -> None:
        """Prove an engine that serves, if it is time to.

        Raises:
            NotReady: It makes no token.
        """
        await self._read_work(base_url)
        if await self._is_due(port):
            timeout_s = self._start_timeout_s if self._running is None else self._idle_timeout_s
            await self._ask(base_url, model, timeout_s)

    async def is_at_rest(self, base_url: str) -> bool:
        """True when the engine says, asked now, that it has no request."""
        await self._read_work(base_url)
        return self.work is not None and self._running == 0 and not self.work.waiting

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
        if self.work is None or self._running is None:
            return not await asyncio.to_thread(ports.clients, port)
        return self.work.steps is not None or not (self.work.running or self.work.waiting)

    @property
    def _running(self) -> int | None:
        return None if self.work is None else self.work.running

    async def _read_work(self, base_url: str) -> None:
        before, self.work = self.work, None
        if self._metrics_path is None or self._clock.monotonic() < self._read_again_at:
            return
        url = base_url + self._metrics_path
        try:
            status, text = await self._read_page(url)
            self.work = parse_work(text)
        except UnreadablePage as error:
            self._read_again_at = self._clock.monotonic() + UNREADABLE_PAUSE_S
            self._warn(url, str(error))
            return
        except (aiohttp.ClientError, OSError, TimeoutError):
            return  # the engine tells nothing, which `None` says
        if self.work is None:
            self._read_again_at = math.inf if status in (HTTPStatus.OK, *ABSENT) else 0.0
            return
        self._warn(url, *self.work.odd)
        steps = self.work.steps
        if before and steps is not None and steps > (before.steps or 0.0):
            self._saw_it_move()

    async def _read_page(self, url: str) -> tuple[int, str]:
        """Status, and the page of a 200.

        Raises:
            UnreadablePage: It is none.
            aiohttp.ClientError: There is no answer; OSError and TimeoutError likewise.
        """
        timeout = aiohttp.ClientTimeout(total=METRICS_TIMEOUT_S)
        async with self._session.get(url, timeout=timeout, headers={"Accept": ACCEPT}) as answer:
            if answer.status != HTTPStatus.OK:
                return answer.status, ""
            try:
                body = await read_bounded(answer, PAGE_LIMIT_BYTES)
            except AnswerTooLarge as error:
                raise UnreadablePage(f"it has more than {PAGE_LIMIT_BYTES} bytes") from error
            except TimeoutError as error:
                raise UnreadablePage(f"it does not end within {METRICS_TIMEOUT_S:g} s") from error
            return answer.status, text_of(body, answer.headers.get("Content-Type"))

    def _warn(self, url: str, *reasons: str) -> None:
        """Say what is wrong with its metrics, once in its life."""
        if reasons and not self._has_warned:
            log.warning("engine.metrics_passed_over", url=url, reasons=reasons)
            self._has_warned = True
