"""`GET /metrics/engines`: what all replicas' engines tell of themselves, for one scrape.

The router asks: it knows every replica, static ones as well, is let in by each (`replica_keys`, `replica_ca_file`), and
connects to them anyway. A call costs them at most one request a second, however many scrapers there are.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from enum import StrEnum
from http import HTTPStatus
from typing import NamedTuple

import aiohttp
import structlog

from common.discovery.plan import BASE_PATH
from common.exposition import ACCEPT, PAGE_LIMIT_BYTES, Family, Sample, UnreadablePage, parse, text_of
from common.http.client import AnswerTooLarge, read_bounded
from common.wire.address import authority
from router.control.engine_page import EnginePage
from router.model import Eligibility, Replica

log = structlog.get_logger(__name__)
CONCURRENCY = 64
GATHER_S = 4.0
"""For all of them together; a scrape that comes every five seconds has that long."""
CONNECT_S = 2.0
ALL_LIMIT_BYTES = 64 << 20
FRESH_S = 1.0
"""Who asks again within it gets the same page."""
DEFAULT_PATH = "/metrics"
PATH_LIMIT = 256
OUTCOMES = "svc_router_engine_metrics_outcome"
_OUTCOMES_HELP = "1 for what came of asking the engine for its metrics; replicas that are down are not asked."
_TELLS_NOTHING = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)


class Outcome(StrEnum):
    """What came of asking one engine."""

    TOLD = "told"
    ABSENT = "absent"
    """It has no such page."""
    LATE = "late"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    UNREADABLE = "unreadable"
    LEFT_OUT = "left_out"
    """All together told too much."""


_LOGGED = frozenset({Outcome.LATE, Outcome.REFUSED, Outcome.UNREADABLE, Outcome.LEFT_OUT})
"""Of what else is wrong its probes tell."""


class _Answer(NamedTuple):
    outcome: Outcome
    reason: str = ""
    body: bytes = b""
    content_type: str | None = None


_LATE = _Answer(Outcome.LATE, f"no whole answer within {GATHER_S:g} s")


class EngineMetrics:
    """Asks the engines.

    Args:
        session: The process's session.
        replicas: The replicas as they are now.
        tls: Gives what replicas on https are checked with now.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        replicas: Callable[[], Iterable[Replica]],
        tls: Callable[[], ssl.SSLContext],
    ) -> None:
        self._session = session
        self._replicas = replicas
        self._tls = tls
        self._one_at_a_time = asyncio.Lock()
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._page = b""
        self._made_at = -FRESH_S
        self._size_bytes = 0
        self._before: Mapping[str, Outcome] = {}

    async def page(self) -> bytes:
        """All engines' text as one page, and what came of asking each."""
        async with self._one_at_a_time:
            if time.monotonic() - self._made_at >= FRESH_S:
                self._page = await self._gather()
                self._made_at = time.monotonic()
                asyncio.get_running_loop().call_later(FRESH_S, self._forget)
            return self._page

    def _forget(self) -> None:
        if time.monotonic() - self._made_at >= FRESH_S:
            self._page = b""

    async def _gather(self) -> bytes:
        asked = [replica for replica in self._replicas() if replica.eligibility is not Eligibility.DOWN]
        # Those that gave nothing last time come last: they may take what time there is.
        asked.sort(key=lambda replica: self._before.get(replica.name, Outcome.TOLD) is not Outcome.TOLD)
        self._size_bytes = 0
        answers = {replica.name: _LATE for replica in sorted(asked, key=lambda replica: replica.name)}

        async def ask(replica: Replica) -> None:
            answers[replica.name] = await self._ask(replica)

        with suppress(TimeoutError):
            async with asyncio.timeout(GATHER_S), asyncio.TaskGroup() as asking:
                for replica in asked:
                    asking.create_task(ask(replica), name=f"engine metrics {replica.name}")
        page, unreadable = await asyncio.to_thread(_merge, answers)
        self._note({name: unreadable.get(name, answer) for name, answer in answers.items()})
        return page

    def _note(self, answers: Mapping[str, _Answer]) -> None:
        """Log what is newly passed over."""
        for name, answer in answers.items():
            if answer.outcome in _LOGGED and self._before.get(name) is not answer.outcome:
                log.warning("engine_metrics.passed_over", replica=name, outcome=answer.outcome, reason=answer.reason)
        self._before = {name: answer.outcome for name, answer in answers.items()}

    async def _ask(self, replica: Replica) -> _Answer:
        async with self._slots:
            too_much = _Answer(Outcome.LEFT_OUT, f"all engines together tell more than {ALL_LIMIT_BYTES} bytes")
            if self._size_bytes >= ALL_LIMIT_BYTES:
                return too_much
            try:
                answer = await self._get(replica)
            except TimeoutError:
                return _LATE
            except AnswerTooLarge:
                return _Answer(Outcome.UNREADABLE, f"it has more than {PAGE_LIMIT_BYTES} bytes")
            except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a host that cannot be one
                return _Answer(Outcome.UNREACHABLE, repr(error))
            self._size_bytes += len(answer.body)
            return answer if self._size_bytes <= ALL_LIMIT_BYTES else too_much

    async def _get(self, replica: Replica) -> _Answer:
        plan = replica.plan
        headers = {"Accept": ACCEPT, "Accept-Encoding": "identity", "Connection": "close"}
        if plan.authorization:
            headers["Authorization"] = plan.authorization
        async with self._session.get(
            url_of(replica),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=GATHER_S, sock_connect=CONNECT_S),
            allow_redirects=False,
            auto_decompress=False,
            ssl=self._tls() if plan.tls else True,
        ) as answer:
            if answer.status in _TELLS_NOTHING:
                return _Answer(Outcome.ABSENT)
            if answer.status != HTTPStatus.OK:
                return _Answer(Outcome.REFUSED, f"it answers {answer.status}")
            body = await read_bounded(answer, PAGE_LIMIT_BYTES)
            return _Answer(Outcome.TOLD, "", body, answer.headers.get("Content-Type"))


def url_of(replica: Replica) -> str:
    """Where a replica tells: `metadata.metrics_path`, which is whole, else `/metrics` below its base path."""
    plan, path = replica.plan, replica.hints.metrics_path or ""
    if BASE_PATH.fullmatch(path) and len(path) <= PATH_LIMIT:
        return f"{'https' if plan.tls else 'http'}://{authority(plan.host, plan.port)}{path}"
    return plan.url + DEFAULT_PATH


def _merge(answers: Mapping[str, _Answer]) -> tuple[bytes, dict[str, _Answer]]:
    """The page, and those that turned out to be unreadable."""
    page, unreadable = EnginePage(), dict[str, _Answer]()
    for name, answer in answers.items():
        outcome = answer.outcome
        if outcome is Outcome.TOLD:
            try:
                families = parse(text_of(answer.body, answer.content_type))
                families.pop(OUTCOMES, None)  # of another router: what is said of that name here, we say
                page.add(families, name)
            except UnreadablePage as error:
                outcome = Outcome.UNREADABLE
                unreadable[name] = _Answer(outcome, str(error))
        page.add({OUTCOMES: Family("gauge", _OUTCOMES_HELP, [_outcome(outcome)])}, name)
    return page.render().encode(), unreadable


def _outcome(outcome: Outcome) -> Sample:
    return Sample(OUTCOMES, (("outcome", outcome.value),), 1.0, "1")
