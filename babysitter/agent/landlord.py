"""All replicas of a node: made, found again, shown and let go. Ids and ports are given here, without an await between."""

import asyncio
import contextlib
import json
import random
import secrets
import string
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from babysitter import ports
from babysitter.agent import port_plan, processes
from babysitter.agent.house import FULL, House
from babysitter.agent.keeper import Keeper
from babysitter.agent.lodging import Lodging
from babysitter.agent.model import Desired, Tenancy
from babysitter.agent.processes import Sitter
from babysitter.agent.requests import digest, read_request
from babysitter.agent.settings import AgentSettings
from common.clock import Clock, iso
from common.http.errors import ApiError
from common.tasks import TaskScope

log = structlog.get_logger(__name__)
ID_LENGTH = 12
ALPHABET = string.ascii_lowercase + string.digits
RENEWAL_S = 5.0
"""Between two looks at babysitters that cannot be started again yet."""
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


class Landlord:
    """The replicas of one root.

    Args:
        settings: The agent's.
        house: Where they live; its lock is held.
        lodging: What each of them gets.
        session: For calls of babysitters and servers.
        scope: Owns the keepers' tasks.
        clock: Time.
    """

    def __init__(
        self,
        settings: AgentSettings,
        house: House,
        lodging: Lodging,
        *,
        session: aiohttp.ClientSession,
        scope: TaskScope,
        clock: Clock,
    ) -> None:
        self.settings = settings
        self.house = house
        self.lodging = lodging
        self.session = session
        self.changed: Callable[[], None] = lambda: None
        self._scope = scope
        self._clock = clock
        self._keepers: dict[str, Keeper] = {}
        self._arriving: dict[str, _Arriving] = {}
        self._by_request: dict[str, str] = {}
        self._last_port: int | None = None
        self._starts = asyncio.Semaphore(settings.starts_at_once)
        self._rng = random.Random()  # noqa: S311 - jitter
        self._leaving = False
        self._renewal = asyncio.Event()

    def adopt(self) -> None:
        """Find the replicas of earlier agents, and keep them. Quick: their babysitters are found by one look at /proc."""
        sitters = processes.scan(self.house.root)
        for tenancy in self.house.tenancies():
            found = sitters.get(tenancy.replica_id)
            self._admit(tenancy, self.house.request(tenancy.replica_id), found[0] if found else None)
        log.info("agent.adopted", replicas=len(self._keepers), babysitters=len(sitters))

    def relodge(self, settings: AgentSettings, lodging: Lodging) -> None:
        """Settings changed: new replicas get theirs from these, and so do the babysitters that run, one by one."""
        self.settings, self.lodging = settings, lodging
        for keeper in self._keepers.values():
            keeper.lodging = lodging
        self._renewal.set()

    async def renew(self) -> None:
        """Start babysitters that run with other settings than those in force again, one after the other, for ever.

        Those of an earlier agent may be among them: it was started again because a token is needed from now on, say.
        Where one cannot start with the new settings, the others keep theirs until the settings change again.
        """
        while True:
            self._renewal.clear()
            is_stuck = False
            for keeper in self.keepers():
                if keeper.is_outdated and not await keeper.renew():
                    log.error("babysitter.not_renewed", replica=keeper.replica_id)
                    is_stuck = True
                    break
            waiting = not is_stuck and any(keeper.is_outdated for keeper in self._keepers.values())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEWAL_S if waiting else None):
                    await self._renewal.wait()

    def keepers(self) -> list[Keeper]:
        """Every replica that is shown, by id."""
        return [self._keepers[replica_id] for replica_id in sorted(self._keepers)]

    def keeper(self, replica_id: str) -> Keeper:
        """The replica of that id.

        Raises:
            ApiError: 404.
        """
        found = self._keepers.get(replica_id)
        if found is None:
            raise ApiError(404, f"replica {replica_id!r} not found")
        return found

    async def create(self, body: Mapping[str, Any]) -> tuple[Keeper, bool]:
        """Make a replica; True when it was made before, by the same request (E1).

        Raises:
            ApiError: 4xx for a request of no use, 409 for a `request_id` that meant another, 503 or 507 for no room.
        """
        wanted = read_request(body, wheel_dirs=self.lodging.wheel_dirs, model_dirs=self.lodging.model_dirs)
        if wanted.placement.node not in (None, self.settings.node):
            raise ApiError(422, f"field 'placement.node': this is node {self.settings.node!r}", field="placement.node")
        request_id = wanted.request_id or uuid.uuid4().hex
        mark = digest(body)
        known = self._by_request.get(request_id)
        if known is not None:
            if known in self._arriving:
                await self._arriving[known].over.wait()
            return self._same(known, request_id, mark), True
        tenancy = self._reserve(request_id, mark)
        request = {**body, "request_id": request_id}
        arriving = self._arriving[tenancy.replica_id] = _Arriving(tenancy)
        try:
            await asyncio.to_thread(self._move_in, tenancy, request)
        except OSError as error:
            del self._by_request[request_id]
            log.error("replica.not_made", replica=tenancy.replica_id, reason=str(error))
            status = 507 if error.errno in FULL else 500
            raise ApiError(status, f"no directory can be made for the replica: {error.strerror or error}") from error
        else:
            log.info(
                "replica.created",
                replica=tenancy.replica_id,
                request_id=request_id,
                port=tenancy.port,
                model=wanted.model_name,
            )
            return self._admit(tenancy, request, None), False
        finally:
            del self._arriving[tenancy.replica_id]
            arriving.over.set()

    async def clean_up(self) -> None:
        """Stop every replica, and wait until all are over (CLEANUP_ON_SHUTDOWN); bounded by what a stop may take."""
        self._leaving = True
        keepers = [keeper for keeper in self._keepers.values() if not keeper.tenancy.over]
        for keeper in keepers:
            await keeper.want(Desired.STOPPED)
        waiting = [asyncio.ensure_future(keeper.ended.wait()) for keeper in keepers]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=self.lodging.stop_limit_s)
            for task in late:
                task.cancel()
            log.info("agent.cleaned_up", replicas=len(keepers), late=len(late))

    def counts(self) -> dict[str, int]:
        """How many replicas there are, how many of them are ready, and for how many more there is room."""
        infos = [keeper.info()["status"] for keeper in self._keepers.values()]
        used = sum(not keeper.tenancy.over for keeper in self._keepers.values())
        return {
            "replicas_total": len(infos),
            "replicas_ready": infos.count("ready"),
            "replicas_live": used,
            "capacity": self.settings.max_replicas,
        }

    def _same(self, replica_id: str, request_id: str, mark: str) -> Keeper:
        keeper = self._keepers.get(replica_id)
        if keeper is None:
            raise ApiError(503, f"the replica of request_id {request_id!r} could not be made; ask again")
        if keeper.tenancy.digest != mark:
            raise ApiError(
                409,
                f"field 'request_id': {request_id!r} was used for another request, replica {replica_id}",
                field="request_id",
                replica_id=replica_id,
            )
        return keeper

    def _reserve(self, request_id: str, mark: str) -> Tenancy:
        """An id and two ports that nobody else has.

        Raises:
            ApiError: 503; the node is full.
        """
        if self._leaving:
            raise ApiError(503, "the agent is ending", headers={"Retry-After": "5"})
        live = [keeper.tenancy for keeper in self._keepers.values() if not keeper.tenancy.over]
        live += [arriving.tenancy for arriving in self._arriving.values()]
        if len(live) >= self.settings.max_replicas:
            raise ApiError(503, f"the node is full: max_replicas is {self.settings.max_replicas}")
        replica_id = _new_id()
        while replica_id in self._keepers or replica_id in self._arriving:
            replica_id = _new_id()
        port = self._free_port({port for tenancy in live for port in (tenancy.port, tenancy.port + 1)})
        self._by_request[request_id] = replica_id
        return Tenancy(replica_id, port, request_id, mark, iso(self._clock.utcnow()))

    def _free_port(self, taken: set[int]) -> int:
        """The first of two ports that are neither reserved nor in use (E8).

        Raises:
            ApiError: 507; there are none.
        """
        try:
            avoid = port_plan.ephemeral(EPHEMERAL.read_text(encoding="ascii"))
        except OSError:
            avoid = range(0)
        first, last = self.settings.first_port, self.settings.last_port
        for port in port_plan.candidates(first, last, taken=taken, avoid=avoid, after=self._last_port):
            if ports.is_free(self.settings.servers_host, port, port + 1):
                self._last_port = port
                return port
        raise ApiError(507, f"no two ports between {first} and {last} are free (settings first_port, last_port)")

    def _move_in(self, tenancy: Tenancy, request: Mapping[str, Any]) -> None:
        first = {
            "replica_id": tenancy.replica_id,
            "server_mode": request["server_mode"],
            "model_name": request["model_name"],
            "status": "pending",
            "display_status": "Pending",
            "endpoint": "NA",
            "port": tenancy.port,
            "workdir": str(self.house.directory(tenancy.replica_id)),
            "created_at": tenancy.created_at,
            "updated_at": tenancy.created_at,
            "memory": {"created_at": tenancy.created_at},
        }
        self.house.move_in(tenancy, json.dumps(request).encode(), self.lodging.settings, first)

    def _admit(self, tenancy: Tenancy, request: dict[str, Any], found: Sitter | None) -> Keeper:
        keeper = Keeper(
            tenancy,
            request,
            self.house,
            self.lodging,
            session=self.session,
            clock=self._clock,
            starts=self._starts,
            found=found,
            changed=self._tell_change,
            node=self.settings.node,
            retention_s=self.settings.stopped_retention_s,
            rng=self._rng,
        )
        self._keepers[tenancy.replica_id] = keeper
        self._by_request[tenancy.request_id] = tenancy.replica_id
        self._scope.spawn(f"keeper.{tenancy.replica_id}", self._keep(keeper))
        self._tell_change()
        return keeper

    async def _keep(self, keeper: Keeper) -> None:
        await keeper.run()
        del self._keepers[keeper.replica_id]
        if self._by_request.get(keeper.tenancy.request_id) == keeper.replica_id:
            del self._by_request[keeper.tenancy.request_id]
        self._tell_change()

    def _tell_change(self) -> None:
        self.changed()


@dataclass(slots=True)
class _Arriving:
    """A replica whose directory is being made."""

    tenancy: Tenancy
    over: asyncio.Event = field(default_factory=asyncio.Event)


def _new_id() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH))
