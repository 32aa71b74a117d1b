"""Loads and unloads a server's LoRA adapters by vLLM's own calls; lora.py decides. One step at a time, whoever asks for it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus

import aiohttp
import msgspec
import structlog

from babysitter import lora
from babysitter.probe import fetch_json
from babysitter.server_runner import DRAIN_POLL_S, HEARD_S
from babysitter.spec import Spec
from common.http.client import read_bounded
from common.wire.base import ModelObject
from common.wire.lora import AdapterState, LoraAdapter

log = structlog.get_logger(__name__)
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
MODELS, METRICS = "/v1/models", "/metrics"
STEP_TIMEOUT_S = 120.0
ASK_TIMEOUT_S = 5.0
ANSWER_LIMIT_BYTES = 8 << 20
WORDS_LIMIT = 500
MOST_CALLS = 32
"""Calls that may wait for their turn."""
NO_SUCH_CALL = "it was started without --enable-lora, or without VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"


class AdapterError(Exception):
    """A step that did not come about; `status` is for whoever called, the text for operators."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class AdapterKeeper:
    """The adapters of one server.

    Args:
        spec: The replica.
        said: The latest word on each adapter; kept over restarts.
        session: Asks the server, with its key.
        is_ready: Whether the server takes requests.
        persist: Writes what is remembered.
        changed: Called when others should know of something.
        look: Has the server's models looked at soon.
    """

    def __init__(
        self,
        spec: Spec,
        said: dict[str, bool],
        session: aiohttp.ClientSession,
        *,
        is_ready: Callable[[], bool],
        persist: Callable[[], Awaitable[None]],
        changed: Callable[[], None],
        look: Callable[[], None],
    ) -> None:
        self._rules, self._drain_s = spec.lora, spec.policy.drain_s
        self._said = said
        self._session = session
        self._is_ready, self._persist, self._changed, self._look = is_ready, persist, changed, look
        self.steps = 0
        """Rises when a step begins and when it ends."""
        self._url = ""
        self._loaded: dict[str, str] = {}
        self._loaded_at: dict[str, float] = {}
        self._troubles: dict[str, lora.Trouble] = {}
        self._doing: dict[str, AdapterState] = {}
        self._offered: list[str] = []
        self._turn = asyncio.Lock()
        self._calls = 0
        self._due = asyncio.Event()

    def reload(self, spec: Spec) -> None:
        """Have what these settings say from now on; what failed is tried again."""
        self._rules, self._drain_s = spec.lora, spec.policy.drain_s
        self._troubles.clear()
        self._due.set()

    def new_attempt(self) -> None:
        """The server is started anew, and has nothing."""
        for known in (self._loaded, self._loaded_at, self._troubles, self._doing):
            known.clear()

    def states(self) -> list[LoraAdapter]:
        """Every adapter of the settings."""
        return lora.states(self._rules, self._loaded, self._troubles, self._doing)

    def loadable(self, models: Collection[str]) -> list[str]:
        """Adapters that a request may have loaded, none of `models`: what is told of both must be of one moment."""
        return lora.loadable(self._rules, models, self._troubles, self._doing, time.monotonic())

    def shown(self, models: Sequence[ModelObject]) -> list[ModelObject]:
        """The models without those about to leave: they get no new requests."""
        return [model for model in models if self._doing.get(str(model["id"])) != "unloading"]

    async def look(self, url: str, models: Sequence[ModelObject], *, steps: int, starts: bool) -> bool:
        """Compare the engine's list with what is wanted. Before a server that `starts` is ready, what it lacks is loaded.

        Args:
            url: The server's.
            models: Its list.
            steps: `steps` as it was before the list was asked for.
            starts: The server is not ready yet.

        Returns:
            Whether the list is older than a step.
        """
        if not self._rules.paths and not self._said:
            return False
        self._url = url
        if steps != self.steps:
            return True
        self._loaded = lora.listed(models)
        if (offered := self.loadable(self._loaded)) != self._offered:
            self._offered = offered
            self._changed()
        if self._next() is None:
            return False
        if starts:
            await self._settle()
        else:
            self._due.set()
        return starts

    async def run(self) -> None:
        """Take the steps that come due while the server serves, until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            if self._is_ready():
                await self._settle()

    async def load(self, name: str, *, on_demand: bool = False) -> LoraAdapter:
        """Load an adapter, for an operator or, `on_demand`, for a request; who comes while it is being loaded waits.

        Raises:
            AdapterError: It is none of the settings', the server is not ready or refuses it, or there is no room.
        """
        if on_demand and not self._rules.on_demand:
            raise AdapterError(HTTPStatus.CONFLICT, "adapters are loaded by call here (setting lora.on_demand)")
        async with self._call(name):
            trouble = self._troubles.get(name)
            if on_demand and trouble is not None and trouble.retry_at > time.monotonic():
                raise AdapterError(HTTPStatus.BAD_GATEWAY, trouble.error)
            leaver = await self._leaver() if name not in self._loaded else None
            if name not in self._loaded:
                await self._load(name)
            self._said[name] = True
            if leaver is not None:  # only now: an adapter that cannot be loaded drives nobody out
                self._said[leaver] = False
                self._due.set()
            await self._persist()
            return self._state(name)

    async def unload(self, name: str) -> LoraAdapter:
        """Unload an adapter once its requests are over, or have had the drain's time.

        Raises:
            AdapterError: It is none of the settings', or the server refuses.
        """
        async with self._call(name):
            self._said[name] = False
            await self._persist()
            if name in self._loaded:
                await self._unload(name)
            return self._state(name)

    def _state(self, name: str) -> LoraAdapter:
        return next(one for one in self.states() if one.name == name)

    def _next(self) -> lora.Step | None:
        return lora.next_step(self._rules, self._said, self._loaded, self._troubles, time.monotonic())

    @asynccontextmanager
    async def _call(self, name: str) -> AsyncIterator[None]:
        """The turn of one call."""
        if name not in self._rules.paths:
            raise AdapterError(HTTPStatus.NOT_FOUND, f"no adapter {name!r} here: name it under [lora] adapters")
        if self._calls >= MOST_CALLS:
            raise AdapterError(HTTPStatus.SERVICE_UNAVAILABLE, "too many calls wait for adapters")
        self._calls += 1
        try:
            async with self._turn:
                if not self._is_ready():
                    raise AdapterError(HTTPStatus.SERVICE_UNAVAILABLE, "the server is not ready")
                yield
        finally:
            self._calls -= 1

    async def _settle(self) -> None:
        async with self._turn:
            while (step := self._next()) is not None:
                try:
                    await (self._load(step.name) if step.load else self._unload(step.name))
                except AdapterError:
                    continue  # noted, and due again later
                await self._persist()

    async def _leaver(self) -> str | None:
        """Who makes room for one more; None where there is room."""
        stay = lora.staying(self._rules, self._said, self._loaded)
        if len(stay) < self._rules.max_loaded:
            return None
        ages_s = {name: time.monotonic() - self._loaded_at[name] for name in stay if name in self._loaded_at}
        name = lora.victim(stay, await self._use(), ages_s)
        if name is None:
            message = f"all {len(stay)} adapters that may be loaded at once (lora.max_loaded) are in use"
            raise AdapterError(HTTPStatus.SERVICE_UNAVAILABLE, message)
        return name

    async def _load(self, name: str) -> None:
        path = self._rules.paths[name]
        async with self._step(name, "loading"):
            try:
                await self._post(LOAD, {"lora_name": name, "lora_path": path})
            except AdapterError:
                if (await self._listed()).get(name) != path:  # else an earlier try came to an end after all
                    raise
            self._loaded[name] = path
            self._loaded_at[name] = time.monotonic()
            self._said[name] = True
            log.info("adapter.loaded", adapter=name)

    async def _unload(self, name: str) -> None:
        """Out of the report, then, once its requests are over or have had their time, out of the engine, which finishes them."""
        async with self._step(name, "unloading"):
            until = time.monotonic() + self._drain_s
            await asyncio.sleep(min(HEARD_S, self._drain_s))
            while name in (await self._use()).busy and time.monotonic() < until:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(DRAIN_POLL_S)
            try:
                await self._post(UNLOAD, {"lora_name": name})
            except AdapterError:
                if name in await self._listed():
                    raise
            self._loaded.pop(name, None)
            if name not in self._rules.paths:
                self._said.pop(name, None)
            log.info("adapter.unloaded", adapter=name)

    @asynccontextmanager
    async def _step(self, name: str, state: AdapterState) -> AsyncIterator[None]:
        """What is being done, for others to see; a step that the server refused is noted."""
        self._doing[name] = state
        self.steps += 1
        self._changed()
        try:
            yield
            self._troubles.pop(name, None)
        except AdapterError as error:
            trouble = self._troubles[name] = lora.failed(self._troubles.get(name), str(error), time.monotonic())
            log.warning("adapter.refused", adapter=name, what=state, reason=str(error), failures=trouble.failures)
            raise
        finally:
            self._doing.pop(name, None)
            self.steps += 1
            self._changed()
            self._look()

    async def _post(self, path: str, body: Mapping[str, str]) -> None:
        status, raw = await self._ask("POST", path, STEP_TIMEOUT_S, body)
        if status != HTTPStatus.OK:
            raise AdapterError(HTTPStatus.BAD_GATEWAY, f"{path}: status {status}: {_words(raw)}")

    async def _ask(
        self, method: str, path: str, timeout_s: float, body: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(
                method, self._url + path, json=body, timeout=timeout, allow_redirects=False
            ) as answer:
                return answer.status, await read_bounded(answer, ANSWER_LIMIT_BYTES)
        except TimeoutError:
            raise AdapterError(HTTPStatus.BAD_GATEWAY, f"{path}: no answer within {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise AdapterError(HTTPStatus.BAD_GATEWAY, f"{path}: {type(error).__name__}: {error}") from error

    async def _listed(self) -> dict[str, str]:
        answer = await fetch_json(self._session, self._url + MODELS, timeout_s=ASK_TIMEOUT_S)
        models = answer.get("data") if isinstance(answer, dict) else None
        return lora.listed(one for one in models or () if isinstance(one, dict) and "id" in one)

    async def _use(self) -> lora.Use:
        """Who has requests; all, when the server does not say."""
        try:
            _, page = await self._ask("GET", METRICS, ASK_TIMEOUT_S)
        except AdapterError:
            page = b""
        return lora.use_of(page.decode(errors="replace"), self._loaded, time.time())


def _words(raw: bytes) -> str:
    """The engine's own words in an error's body, and what they mean where it has no such call."""
    try:
        content = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        content = raw.decode(errors="replace")
    if isinstance(content, dict) and content.get("detail") == "Not Found":
        return f"{content['detail']}: {NO_SUCH_CALL}"
    error = content.get("error") if isinstance(content, dict) else None
    said = error.get("message") if isinstance(error, dict) else content
    return " ".join(str(said).split())[:WORDS_LIMIT]
