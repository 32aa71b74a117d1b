"""Asks replicas themselves: are you there, which models do you serve, under which form of the paths?

`GET /health` decides; a server without that path is asked for its models instead. Any answer below 500 is a sign of
life. What the record does not say (models, `/v1` or bare) is learned from `/v1/models` and `/models`, at every probe anew:
an adapter may be loaded, or another server stand at the address. Only a babysitter of ours is believed to do so itself.
What it does not say of its calls (`serves.py`) is learned from `/openapi.json`.
"""

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from http import HTTPStatus

import aiohttp
import msgspec
import structlog

from common.discovery.model_list import MODELS_LIMIT_BYTES, parse_models
from common.discovery.plan import Plan
from common.http.client import read_bounded
from common.http.status import get_status, is_plain
from common.wire.base import ModelObject
from router.model import Replica
from router.proxy.reach import SPEAKS_TLS
from router.serves import learned

log = structlog.get_logger(__name__)
CONCURRENCY = 64
SUSPECT_INTERVAL_S = 5.0
"""Replicas in doubt are asked more often than the others (docs/faults.md, the numbers)."""
MOST_PER_S = 50.0
"""Probes of replicas that are well, where there are so many that each is asked less often."""
TICK_S = 0.5
REST_S = 400e-6
"""Between two looks at who is to be asked, for each replica: two hundred times as long as the look takes."""
LEAVE = {"Connection": "close"}
"""A server that is to end waits for its connections: a probe leaves none behind."""
NEIGHBOURS_S = 15.0
"""How long a host is in doubt, once what stood there does not answer: a node that died has more replicas."""
RECHECK_S = 1.0
"""After the first good probe of a replica in doubt: the second one brings it back."""
ASKS_FOR_TLS = (b"plain HTTP request was sent to HTTPS", b"HTTP request to an HTTPS server", b"plain HTTP to an SSL")
"""What nginx, Go's servers and Apache answer, with 400, to plain HTTP at a port for TLS."""
_NEEDS_KEY = (401, 403)
OBJECTS_LIMIT_BYTES = 256 << 10
"""Of a list whose objects are kept for `/v1/models`; of a longer one only the ids are."""
Objects = Mapping[str, ModelObject]
Listed = tuple[tuple[str, ...], Objects]
_NO_SUCH_PATH = (404, 405, 501)
_SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe found; what it did not ask for, or got no answer to, is None."""

    ok: bool
    models: tuple[str, ...] | None = None
    objects: Objects | None = field(default=None, compare=False)
    """The same, with all that the server says of each, by id."""
    prefix: str | None = None
    problem: str | None = None
    """What is wrong, in plain words, where the probe can tell."""
    calls: tuple[str, ...] | None = None


@dataclass(slots=True)
class _Turn:
    """The latest probe of one life of a replica: when it began, and the jitter of the pause after that."""

    generation: str
    at: float
    jitter: float
    asking: bool = True

    def holds(self, replica: Replica, now: float, pause_s: Callable[[Replica], float]) -> bool:
        """Whether it is too early for the next."""
        return self.generation == replica.generation and (self.asking or now - self.at < self.jitter * pause_s(replica))


class ReplicaProber:
    """Probes every replica on its own schedule.

    Args:
        session: The process's session.
        replicas: The replicas as they are now.
        note: Called with (name, generation, result).
        interval_s: Between probes of a replica that is well; more where there are very many.
        timeout_s: Of one request.
        rng: For the jitter.
        tls: Gives what replicas on https are checked with now.
        is_doubted: Tells of a replica that is well by its probes whether requests to it say otherwise.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        replicas: Callable[[], Collection[Replica]],
        note: Callable[[str, str, ProbeResult], None],
        *,
        interval_s: float,
        timeout_s: float,
        rng: random.Random,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        is_doubted: Callable[[Replica], bool] = lambda _replica: False,
        calls: Collection[str] | None = None,
    ) -> None:
        self._session = session
        self._tls = tls
        self._calls = calls
        self._replicas = replicas
        self._note = note
        self._interval_s = self._pause_of_well_s = interval_s
        self._timeout_s = timeout_s
        self._rng = rng
        self._is_doubted = is_doubted
        self._turns: dict[str, _Turn] = {}
        """By the replica's name."""
        self._doubted: dict[str, float] = {}
        """Hosts where a replica stopped answering, and until when its neighbours are asked as often as it."""
        self._lists: dict[tuple[str, str], dict[str, tuple[bytes, Listed | None]]] = {}
        """The last model list of each replica by the form of its path: a digest of its bytes, and what they say."""
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._soon = asyncio.Event()

    def look(self) -> None:
        """There may be new replicas: ask them now, not at the next tick."""
        self._soon.set()

    async def run(self) -> None:
        """Probe for ever."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as probes:
            while True:
                now = loop.time()
                replicas = self._replicas()
                self._doubted = {host: until for host, until in self._doubted.items() if until > now}
                self._pause_of_well_s = max(self._interval_s, len(replicas) / MOST_PER_S)
                for replica in replicas:  # at ten thousand each microsecond here is a hundredth of a core
                    turn = self._turns.get(replica.name)
                    if turn is not None and turn.holds(replica, now, self._pause_s):
                        continue
                    turn = self._turns[replica.name] = _Turn(replica.generation, now, self._rng.uniform(0.9, 1.1))
                    probes.create_task(self._probe(turn, replica), name=f"probe {replica.name}")
                if len(self._turns) > len(replicas):
                    self._forget_all_but(replicas)
                await asyncio.sleep(len(replicas) * REST_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._soon.wait(), TICK_S)
                self._soon.clear()

    def _forget_all_but(self, replicas: Iterable[Replica]) -> None:
        alive = {replica.name: replica.generation for replica in replicas}
        self._turns = {name: turn for name, turn in self._turns.items() if name in alive}
        self._lists = {key: lists for key, lists in self._lists.items() if alive.get(key[0]) == key[1]}

    def _pause_s(self, replica: Replica) -> float:
        """The time between two probes; looked at every tick, so that a replica falls into doubt at once."""
        if replica.doubted and replica.probe_successes:
            return min(self._interval_s, RECHECK_S)
        well = replica.probed_ok is True and replica.leased and not replica.doubted and not self._is_doubted(replica)
        well = well and not (self._doubted and replica.record.host in self._doubted)
        return self._pause_of_well_s if well else min(self._interval_s, SUSPECT_INTERVAL_S)

    async def _probe(self, turn: _Turn, replica: Replica) -> None:
        try:
            async with self._slots:
                result = await self.ask(replica)
        finally:
            turn.asking = False
        if not result.ok and not replica.doubted:
            self._doubted[replica.record.host] = asyncio.get_running_loop().time() + NEIGHBOURS_S
        self._note(replica.name, replica.generation, result)

    async def ask(self, replica: Replica) -> ProbeResult:
        """One probe of `replica`."""
        hints, plan = replica.hints, replica.plan
        status, content = await self._health(plan)
        if status == HTTPStatus.BAD_REQUEST and any(words in content for words in ASKS_FOR_TLS):
            return ProbeResult(ok=False, problem=SPEAKS_TLS)
        problem = replica.problem if _lives(status) else None
        is_new = replica.probed_ok is None  # what is known of it then was learned of its predecessor
        needs_models = not replica.is_watched  # else its babysitter asks, and the record follows
        needs_prefix = (replica.learned_prefix is None or is_new) and (hints.api_prefix or plan.api_prefix) is None
        models: tuple[str, ...] | None = None
        objects: Objects | None = None
        prefix: str | None = None
        content = b""
        if status in _NO_SUCH_PATH or (_lives(status) and (needs_models or needs_prefix)):
            problem = None
            for form in ("/v1", ""):
                answered, content = await self._get(plan, f"{form}/models")
                if answered in _NEEDS_KEY:
                    problem = problem or f"it wants a key: {form}/models answers {answered} (replica_keys)"
                status = answered if status in _NO_SUCH_PATH and _lives(answered) else status
                listed = self._read(replica, form, content) if answered == HTTPStatus.OK else None
                if listed is not None:
                    models, objects = listed
                if models:
                    prefix, problem = form, None
                    break
        is_other = is_new or replica.learned_calls is None or (models is not None and models != replica.learned_models)
        needs_calls = is_other and hints.serves is None
        calls = await self._ask_for_calls(replica, content) if needs_calls and _lives(status) else None
        return ProbeResult(
            ok=_lives(status), models=models, objects=objects, prefix=prefix, problem=problem, calls=calls
        )

    async def _ask_for_calls(self, replica: Replica, models: bytes) -> tuple[str, ...] | None:
        """Which calls a replica tells of; asked when it is new, or serves other models than before (`models`: that answer)."""
        status, page = await self._get(replica.plan, "/openapi.json")
        if status is None:
            return None
        if replica.is_watched:  # its record has that answer
            models = msgspec.json.encode({"data": replica.hints.models_list})
        elif status != HTTPStatus.OK and not models:
            _, models = await self._get(replica.plan, "/v1/models")
        return learned(page, models, self._calls)

    def _read(self, replica: Replica, form: str, content: bytes) -> "Listed | None":
        """Ids and objects of a model list; one that is as it was is not read again."""
        lists = self._lists.setdefault((replica.name, replica.generation), {})
        digest = blake2b(content, digest_size=16).digest()
        latest = lists.get(form)
        if latest is None or latest[0] != digest:
            ids = model_ids(content)
            latest = lists[form] = (digest, None if ids is None else (ids, model_objects(content)))
        return latest[1]

    async def _health(self, plan: Plan) -> tuple[int | None, bytes]:
        """Status of `/health`, and the body where it is looked at."""
        if is_plain(plan):
            try:
                status = await get_status(plan, "/health", timeout_s=self._timeout_s)
            except (OSError, ValueError) as error:
                log.debug("probe.no_answer", url=plan.url, reason=repr(error))
                return None, b""
            if status != HTTPStatus.BAD_REQUEST:
                return status, b""
        return await self._get(plan, "/health")

    async def _get(self, plan: Plan, path: str) -> tuple[int | None, bytes]:
        """Status and body; None when there was no answer."""
        url = plan.url + path
        headers = {**LEAVE, "Authorization": plan.authorization} if plan.authorization else LEAVE
        tls = self._tls() if plan.tls else True
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        try:
            async with self._session.get(
                url, headers=headers, timeout=timeout, allow_redirects=False, ssl=tls
            ) as response:
                return response.status, await read_bounded(response, MODELS_LIMIT_BYTES)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a host that cannot be one
            log.debug("probe.no_answer", url=url, reason=repr(error))
            return None, b""


def model_ids(content: bytes) -> tuple[str, ...] | None:
    """Ids in a models call's answer; None when it is none."""
    try:
        return tuple(model["id"] for model in parse_models(content))
    except ValueError:
        return None


def model_objects(content: bytes) -> Objects:
    """The model objects of a list that `model_ids` can read, by id; none of a list that is long."""
    if len(content) > OBJECTS_LIMIT_BYTES:
        return {}
    return {model["id"]: model for model in parse_models(content)}


def _lives(status: int | None) -> bool:
    return status is not None and status < _SERVER_ERROR
