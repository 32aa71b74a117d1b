"""Puts one server's engine to sleep and wakes it, by the calls of its settings; when, is the machine's to say.

One order at a time: a wake that comes while the engine goes to sleep waits for that to end, and is repeated until it takes.
"""

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus

import aiohttp
import structlog
from msgspec.structs import replace

from babysitter import events as ev
from babysitter.lifecycle import ReplicaState
from babysitter.memory import Memory
from babysitter.probe import NotListening, NotReady
from babysitter.sleep_rules import EngineCall, says_asleep
from babysitter.spec import Spec
from babysitter.stages import put
from common.clock import Clock, iso
from common.http.client import read_bounded
from common.tasks import TaskScope
from common.wire.replica import Stage
from common.wire.words import WAKING, StageState

log = structlog.get_logger(__name__)
CALL_TIMEOUT_S = 300.0
"""Of one call: the weights of a large model are copied, or read from a disk."""
ASK_TIMEOUT_S = 5.0
AGAIN_S = 1.0
WAKES_WITHIN_S = 300.0
"""A server that slept and refuses to wake for so long is ended, and started anew."""
REFUSED_S = 600.0
"""A server that did not sleep when it was told to is not told again for so long."""
ANSWER_LIMIT_BYTES = 64 << 10
WORDS_LIMIT = 300


class _Refused(Exception):
    """The engine answered, and did not do it."""


class Sleeper:
    """Sends one server's engine to sleep and wakes it.

    Args:
        spec: The replica.
        memory: Its stages are kept there.
        session: Asks the server, with its key.
        clock: Time.
        looking: Held while somebody looks at the server: it does not fall asleep meanwhile.
        state: Tells the replica's state now.
        url: Tells where the server is now.
        tell: Takes events.
        seen: Called when a stage begins or ends.
        look: Has the server looked at soon.
    """

    def __init__(
        self,
        spec: Spec,
        memory: Memory,
        session: aiohttp.ClientSession,
        *,
        clock: Clock,
        looking: asyncio.Lock,
        state: Callable[[], ReplicaState],
        url: Callable[[], str],
        tell: Callable[[ev.Event], None],
        seen: Callable[[], None],
        look: Callable[[], None],
    ) -> None:
        self._rules = spec.sleep
        self._memory = memory
        self._session = session
        self._clock = clock
        self._looking = looking
        self._state, self._url, self._tell, self._seen, self._look = state, url, tell, seen, look
        self._may_sleep = False
        self._slept = False
        self._reason = ""
        self._refusal = ""
        self._refused_until = 0.0
        self._order = 0
        self._turn = asyncio.Lock()

    def reload(self, spec: Spec) -> None:
        """As `spec` says from now on; a server that sleeps keeps the calls that wake it."""
        self._refused_until = 0.0
        if spec.sleep is not None or not self._may_sleep:
            self._rules = spec.sleep

    def new_attempt(self) -> None:
        """A server is about to be started, which is awake."""
        self._order += 1
        self._may_sleep = self._slept = False
        self._refused_until = 0.0
        self._memory.stages = [one for one in self._memory.stages if one.name != WAKING]

    def recall(self, *, slept: bool) -> None:
        """An adopted server's, of which nobody knows whether it is awake; `slept`: it was to sleep."""
        was_waking = any(one.name == WAKING and one.state is StageState.RUNNING for one in self._memory.stages)
        self._may_sleep = True
        self._slept = slept or was_waking

    @property
    def cannot(self) -> str | None:
        """Why the server cannot be put to sleep; None when it can."""
        if self._rules is None:
            return "its settings say no calls for that ([sleep]; vLLM has its own where it serves on loopback)"
        if time.monotonic() < self._refused_until:
            return f"it did not sleep when it was told to: {self._refusal}"
        return None

    def check(self) -> None:
        """An engine that may sleep is asked for nothing: a request would end vLLM's.

        Raises:
            NotReady: It may.
        """
        if self._may_sleep:
            text = f"its engine is being woken{f': {self._reason}' if self._reason else ''}"
            raise NotReady(text) if self._slept else NotListening(text)

    def begin(self, scope: TaskScope, effect: ev.SleepEngine | ev.WakeEngine) -> None:
        """Carry out the machine's latest word; the one before counts no more."""
        self._order += 1
        work = self._sleep(self._order) if isinstance(effect, ev.SleepEngine) else self._wake(self._order)
        scope.spawn(f"sleeper.{self._order}", work)

    async def _sleep(self, order: int) -> None:
        async with self._turn, self._looking:
            if order != self._order:
                return
            self._may_sleep = self._slept = True
            reason = await self._put_to_sleep()
        if order != self._order:
            return
        if reason is None:
            self._tell(ev.Slept())
            return
        log.warning("engine.not_asleep", reason=reason)
        self._refusal, self._refused_until = reason, time.monotonic() + REFUSED_S
        self._tell(ev.NotSlept(reason))

    async def _put_to_sleep(self) -> str | None:
        """None once it sleeps, else why it does not."""
        try:
            if await self._is_asleep():
                return None
            for call in self._rules.sleep if self._rules else ():
                await self._call(call)
            return "it says that it is awake" if await self._is_asleep() is False else None
        except (_Refused, aiohttp.ClientError, OSError, TimeoutError) as error:
            return _words(error)

    async def _wake(self, order: int) -> None:
        async with self._turn:
            began = self._clock.monotonic()
            stage = Stage(name=WAKING, state=StageState.RUNNING, began_at=iso(self._clock.utcnow()))
            self._note(stage)
            refused_at: float | None = None
            while order == self._order and self._state() is ReplicaState.WAITING_FOR_READY:
                try:
                    await self._wake_up()
                    break
                except aiohttp.ClientConnectorError as error:  # it may be busy starting
                    self._reason, refused_at = _words(error), None
                except (_Refused, aiohttp.ClientError, OSError, TimeoutError) as error:
                    if refused_at is None and self._slept:
                        log.warning("engine.not_woken", reason=_words(error), again_in_s=AGAIN_S)
                    self._reason, refused_at = _words(error), refused_at or time.monotonic()
                    if self._slept and time.monotonic() - refused_at >= WAKES_WITHIN_S:
                        self._tell(ev.NotWoken(f"it does not wake: {self._reason}"))
                        return
                await asyncio.sleep(AGAIN_S)
            else:
                return
            took_s = round(self._clock.monotonic() - began, 3)
            self._note(replace(stage, state=StageState.DONE, took_s=took_s))
            self._may_sleep, self._slept, self._reason = False, False, ""
            self._look()

    async def _wake_up(self) -> None:
        """Returns once the engine is awake.

        Raises:
            _Refused: It is not.
            aiohttp.ClientError: There is no answer; OSError and TimeoutError likewise.
        """
        if await self._is_asleep() is False:
            return
        for call in self._rules.wake if self._rules else ():
            await self._call(call)
        if await self._is_asleep():
            raise _Refused("it says that it sleeps")

    async def _is_asleep(self) -> bool | None:
        """What it says; None where it has no call for that."""
        if self._rules is None or self._rules.state is None:
            return None
        said = says_asleep(await self._call(self._rules.state, timeout_s=ASK_TIMEOUT_S))
        if said is None:
            raise _Refused(f"{self._rules.state}: the answer has no is_sleeping")
        return said

    async def _call(self, call: EngineCall, timeout_s: float = CALL_TIMEOUT_S) -> bytes:
        headers = {"Content-Type": "application/json"} if call.body else {}
        async with self._session.request(
            call.method,
            self._url() + call.path,
            data=call.body or None,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            allow_redirects=False,
        ) as answer:
            raw = await read_bounded(answer, ANSWER_LIMIT_BYTES)
        if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            raise _Refused(f"{call}: status {answer.status}: {raw.decode(errors='replace')}")
        return raw

    def _note(self, stage: Stage) -> None:
        if self._slept:  # an adopted server that still starts is not being woken
            self._memory.stages = put(self._memory.stages, stage)
            self._seen()


def _words(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:WORDS_LIMIT]
