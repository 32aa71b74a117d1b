"""Has babysitters load LoRA adapters that requests wait for: each once, whichever workers ask (docs/adr/0012).

The workers pick a replica and keep the requests in their lines; a babysitter's answer changes the table, which lets them go.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus

import aiohttp
import msgspec
import structlog

from common.http.client import read_bounded
from common.tasks import TaskScope
from common.wire.lora import LoraCall
from router.model import Replica

log = structlog.get_logger(__name__)
CALL = "/lora/demand"
LOAD_TIMEOUT_S = 180.0
"""A babysitter unloads another one first, where it must, and then gives its server two minutes."""
REFUSED_S = 15.0
"""So long a replica that could not load an adapter is not asked for it again."""
SETTLED_S = 3.0
"""After a load wishes for the adapter are older than the table that has it: a worker hears of that a little later."""
MOST_LOADS = 64
ANSWER_LIMIT_BYTES = 64 << 10
WORDS_LIMIT = 300


class AdapterLoader:
    """Asks babysitters.

    Args:
        session: For all calls.
        scope: Owner of the loads under way.
        replicas: The replicas as they are now.
        note: Called with a replica, an adapter, and until when (monotonic) it is refused there; None: it is loaded.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        scope: TaskScope,
        *,
        replicas: Callable[[], Iterable[Replica]],
        note: Callable[[Replica, str, float | None], None],
    ) -> None:
        self._session = session
        self._scope = scope
        self._replicas = replicas
        self._note = note
        self._loading: set[str] = set()
        """Adapters being loaded, or just loaded."""

    def wanted(self, adapter: str, endpoint: str) -> None:
        """A worker has requests for an adapter that nobody has, and would send them to `endpoint`."""
        if adapter in self._loading or len(self._loading) >= MOST_LOADS:
            return
        able = sorted((one for one in self._replicas() if adapter in one.loadable), key=lambda one: one.id != endpoint)
        if able:
            self._loading.add(adapter)
            self._scope.spawn(f"load {adapter}", self._load(adapter, able))

    async def _load(self, adapter: str, able: list[Replica]) -> None:
        """Ask the chosen one, and the next where that one has no room or refuses; while all are full, workers ask again."""
        try:
            for replica in able:
                status, words = await self._ask(replica, adapter)
                if status == HTTPStatus.OK:
                    log.info("adapter.loaded", replica=replica.name, adapter=adapter)
                    self._note(replica, adapter, None)
                    await asyncio.sleep(SETTLED_S)
                    return
                if status != HTTPStatus.SERVICE_UNAVAILABLE:
                    log.warning(
                        "adapter.not_loaded", replica=replica.name, adapter=adapter, status=status, reason=words
                    )
                    self._note(replica, adapter, time.monotonic() + REFUSED_S)
        finally:
            self._loading.discard(adapter)

    async def _ask(self, replica: Replica, adapter: str) -> tuple[int, str]:
        """The status of a babysitter's answer (0 for none), and what it says."""
        plan = replica.babysitter
        assert plan is not None  # noqa: S101 - else nothing would be loadable there
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": plan.authorization} if plan.authorization else {}
        try:
            async with self._session.post(
                f"{plan.url}{CALL}",
                data=msgspec.json.encode(LoraCall(name=adapter)),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=LOAD_TIMEOUT_S, sock_connect=2.0),
                allow_redirects=False,
            ) as answer:
                raw = await read_bounded(answer, ANSWER_LIMIT_BYTES)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a host that cannot be one
            return 0, repr(error)[:WORDS_LIMIT]
        return answer.status, raw[:WORDS_LIMIT].decode(errors="replace")
