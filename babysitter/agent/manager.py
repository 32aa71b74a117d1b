"""All replicas of a node: created, adopted from earlier agents, listed.

An id and ports are chosen and reserved without an `await` between, so that no two replicas get the same.
"""

import asyncio
import contextlib
import json
import random
import secrets
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
import structlog

from babysitter import ports
from babysitter.agent import port_plan
from babysitter.agent.accelerator_watch import AcceleratorWatch
from babysitter.agent.accelerators import Hold, Need
from babysitter.agent.controller import ReplicaController
from babysitter.agent.launch_spec import LaunchSpec
from babysitter.agent.model import Desired, ReplicaRecord
from babysitter.agent.requests import digest, read_request
from babysitter.agent.runner import Babysitter, LocalRunner, Runner
from babysitter.agent.settings import AgentSettings
from babysitter.agent.slurm.asked import job_of, shared_out
from babysitter.agent.slurm.place import RECIPE
from babysitter.agent.store import FULL, ReplicaStore
from babysitter.agent.template_request import Recipe, make_recipe, read_template_request
from babysitter.agent.templates import TemplateFolder
from babysitter.cbclient.request import CheckedRequest
from babysitter.memory import Memory, SavedReplica
from babysitter.settings import RENDERED
from common.clock import Clock, iso
from common.http.errors import ApiError
from common.names import bind_address
from common.tasks import TaskScope
from common.wire.base import JsonObject
from common.wire.create import GroupPlace, RequestGlance, TemplateRequest
from common.wire.deployment import DEPLOYMENT_KEY
from common.wire.read import read_lenient
from common.wire.replica import NodeCounts
from common.wire.words import ReplicaStatus

log = structlog.get_logger(__name__)
ID_LENGTH = 12
ALPHABET = string.ascii_lowercase + string.digits
RENEWAL_S = 5.0
"""Between two looks at babysitters that cannot be started again yet."""
NOTHING = Need()
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


class ReplicaManager:
    """The replicas of one root.

    Args:
        settings: The agent's.
        store: Their files; its lock is held.
        launch_spec: What each of them gets.
        session: For calls of babysitters and servers.
        scope: Owns the controllers' tasks.
        clock: Time.
        runner: Where babysitters run; None: on this machine.
    """

    def __init__(
        self,
        settings: AgentSettings,
        store: ReplicaStore,
        launch_spec: LaunchSpec,
        *,
        session: aiohttp.ClientSession,
        scope: TaskScope,
        clock: Clock,
        runner: Runner | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.launch_spec = launch_spec
        self.session = session
        self._runner = runner or LocalRunner(store.root)
        self.changed: Callable[[], None] = lambda: None
        self._scope = scope
        self._clock = clock
        self._controllers: dict[str, ReplicaController] = {}
        self._arriving: dict[str, _Arriving] = {}
        self._by_request: dict[str, str] = {}
        self._last_port: int | None = None
        self._starts = asyncio.Semaphore(settings.starts_at_once)
        self._rng = random.Random()  # noqa: S311 - jitter
        self._leaving = False
        self._templates = TemplateFolder(launch_spec.templates_dir, settings.accelerators.assigning)
        self._renewal = asyncio.Event()
        self.accelerators = AcceleratorWatch(
            shared_out(settings), launch_spec.env, interval_s=settings.heartbeat_interval_s
        )

    def adopt(self) -> None:
        """Find the replicas of earlier agents, and keep them."""
        records = list(self.store.records())
        babysitters = self._runner.adopt(records)
        for record in records:
            self._admit(record, self.store.request(record.replica_id), babysitters.get(record.replica_id))
        log.info("agent.adopted", replicas=len(self._controllers), babysitters=len(babysitters))

    def reload(self, settings: AgentSettings, launch_spec: LaunchSpec) -> None:
        """Settings changed: new replicas get theirs from these, and so do the babysitters that run, one by one."""
        self.settings, self.launch_spec = settings, launch_spec
        for controller in self._controllers.values():
            controller.launch_spec = launch_spec
        self._renewal.set()

    async def renew(self) -> None:
        """Start babysitters that run with other settings than those in force again, one after the other, for ever.

        Those of an earlier agent may be among them: it was started again because a token is needed from now on, say.
        Where one cannot start with the new settings, the others keep theirs until the settings change again.
        """
        while True:
            self._renewal.clear()
            is_stuck = False
            for controller in self.controllers():
                if controller.is_outdated and not await controller.renew():
                    log.error("babysitter.not_renewed", replica=controller.replica_id)
                    is_stuck = True
                    break
            waiting = not is_stuck and any(controller.is_outdated for controller in self._controllers.values())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEWAL_S if waiting else None):
                    await self._renewal.wait()

    def controllers(self) -> list[ReplicaController]:
        """Every replica that is shown, by id."""
        return [self._controllers[replica_id] for replica_id in sorted(self._controllers)]

    def controller(self, replica_id: str) -> ReplicaController:
        """The replica of that id.

        Raises:
            ApiError: 404.
        """
        controller = self._controllers.get(replica_id)
        if controller is None:
            raise ApiError(404, f"replica {replica_id!r} not found")
        return controller

    @property
    def templates(self) -> TemplateFolder:
        """The templates of this node."""
        if self._templates.path != self.launch_spec.templates_dir:
            self._templates = TemplateFolder(self.launch_spec.templates_dir, self.settings.accelerators.assigning)
        return self._templates

    def read(self, body: JsonObject) -> CheckedRequest | TemplateRequest:
        """The request in a body. A template and its parameters are judged when the replica is made, which is once.

        Raises:
            ApiError: 4xx; it is of no use here.
        """
        request: CheckedRequest | TemplateRequest
        if body.get("backend") is not None:
            request = read_template_request(body)
        else:
            request = read_request(body, wheel_dirs=self.launch_spec.wheel_dirs, model_dirs=self.launch_spec.model_dirs)
        if request.placement.node not in (None, self.settings.node):
            raise ApiError(422, f"field 'placement.node': this is node {self.settings.node!r}", field="placement.node")
        return request

    async def create(
        self, request: CheckedRequest | TemplateRequest, body: JsonObject
    ) -> tuple[ReplicaController, bool]:
        """Make the replica of `request`, which stands in `body`; True when it was made before, by the same one (E1).

        Raises:
            ApiError: 409 for a `request_id` that meant another, 422 for a template or parameters of no use and for more
                accelerators than there are, 503 or 507 for no room.
        """
        request_id = request.request_id or uuid.uuid4().hex
        mark = digest(body)
        recipe, need = None, NOTHING
        if request_id not in self._by_request:
            recipe = make_recipe(request, self.templates.read()) if isinstance(request, TemplateRequest) else None
            need = needs_of(request, recipe.file.needs if recipe else NOTHING)
            if need.count:
                await self.accelerators.read_claims()
        replica_id = self._by_request.get(request_id)
        if replica_id is not None:
            if replica_id in self._arriving:
                await self._arriving[replica_id].over.wait()
            return self._same(replica_id, request_id, mark), True
        group = request.group if isinstance(request, TemplateRequest) else None
        record = self._reserve(request_id, mark, need, job_of(self.settings, recipe, need, group), group)
        content = {**body, "request_id": request_id, "model_name": recipe.model_name if recipe else request.model_name}
        arriving = self._arriving[record.replica_id] = _Arriving(record)
        try:
            await asyncio.to_thread(self._create_files, record, content, recipe)
        except ApiError:
            del self._by_request[request_id]
            raise
        except OSError as error:
            del self._by_request[request_id]
            log.error("replica.not_made", replica=record.replica_id, reason=str(error))
            status = 507 if error.errno in FULL else 500
            raise ApiError(status, f"no directory can be made for the replica: {error.strerror or error}") from error
        else:
            log.info(
                "replica.created",
                replica=record.replica_id,
                request_id=request_id,
                port=record.port,
                accelerators=record.accelerators,
                model=content["model_name"],
            )
            return self._admit(record, read_lenient(RequestGlance, content), None), False
        finally:
            del self._arriving[record.replica_id]
            arriving.over.set()

    async def clean_up(self) -> None:
        """Stop every replica, and wait until all are over (CLEANUP_ON_SHUTDOWN); bounded by what a stop may take."""
        self._leaving = True
        controllers = [controller for controller in self._controllers.values() if not controller.record.over]
        for controller in controllers:
            await controller.want(Desired.STOPPED)
        waiting = [asyncio.ensure_future(controller.ended.wait()) for controller in controllers]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=self.launch_spec.stop_limit_s)
            for task in late:
                task.cancel()
            log.info("agent.cleaned_up", replicas=len(controllers), late=len(late))

    def counts(self) -> NodeCounts:
        """How many replicas there are, how many of them are ready, and for how many more there is room."""
        statuses = [controller.info().status for controller in self._controllers.values()]
        used = sum(not controller.record.over for controller in self._controllers.values())
        return NodeCounts(
            replicas_total=len(statuses),
            replicas_ready=statuses.count(ReplicaStatus.READY),
            replicas_live=used,
            capacity=self.settings.max_replicas,
        )

    def holds(self) -> list[Hold]:
        """Which replicas have which accelerators: those that are not over, and those that are being made."""
        return [
            Hold(record.replica_id, record.accelerators, record.accelerator_mb)
            for record in self._live()
            if record.accelerators
        ]

    def _live(self) -> list[ReplicaRecord]:
        """Every replica that holds something of the node."""
        live = [controller.record for controller in self._controllers.values() if not controller.record.over]
        return live + [arriving.record for arriving in self._arriving.values()]

    def _same(self, replica_id: str, request_id: str, mark: str) -> ReplicaController:
        controller = self._controllers.get(replica_id)
        if controller is None:
            raise ApiError(503, f"the replica of request_id {request_id!r} could not be made; ask again")
        if controller.record.digest != mark:
            raise ApiError(
                409,
                f"field 'request_id': {request_id!r} was used for another request, replica {replica_id}",
                field="request_id",
                replica_id=replica_id,
            )
        return controller

    def _reserve(
        self, request_id: str, mark: str, need: Need, job: dict[str, str], group: GroupPlace | None
    ) -> ReplicaRecord:
        """An id, two ports (three to lead a group) and accelerators that nobody else has.

        Raises:
            ApiError: 503, the node is full; 422, it will never have so many accelerators.
        """
        if self._leaving:
            raise ApiError(503, "the agent is ending", headers={"Retry-After": "5"})
        live = self._live()
        if len(live) >= self.settings.max_replicas:
            raise ApiError(503, f"the node is full: max_replicas is {self.settings.max_replicas}")
        accelerators = self.accelerators.choose(need, self.holds())
        replica_id = next(one for one in iter(_new_id, "") if one not in {**self._controllers, **self._arriving})
        is_local = self.settings.runner == "local"
        taken = {port for record in live for port in record.ports}
        port = self._free_port(taken) if is_local else 0
        rendezvous_port = self._free_port({*taken, port}) if group and group.rank == 0 else 0
        self._by_request[request_id] = replica_id
        return ReplicaRecord(
            replica_id,
            port,
            request_id,
            mark,
            iso(self._clock.utcnow()),
            accelerators=accelerators,
            accelerator_mb=need.memory_mb if need.is_shared else 0,
            env=self.accelerators.environment(accelerators) if is_local else {},
            job=job,
            group=(group.rank, group.size) if group else None,
            rendezvous_port=rendezvous_port,
        )

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

    def _create_files(self, record: ReplicaRecord, content: JsonObject, recipe: Recipe | None) -> None:
        host, port = bind_address(self.settings.servers_host), record.port or self.settings.first_port
        made: dict[str, bytes] = {}
        if recipe is not None and record.group is None:
            made[RENDERED] = recipe.rendered(host=host, port=port, accelerators=len(record.accelerators))
        if recipe is not None and (record.group or not record.port):  # rendered when all of that is known
            made = {RECIPE: msgspec.json.encode(recipe)}
        first = SavedReplica(
            replica_id=record.replica_id,
            server_mode=content.get("server_mode"),
            model_name=content["model_name"],
            status=ReplicaStatus.PENDING,
            port=record.port or None,
            workdir=str(self.store.directory(record.replica_id)),
            created_at=record.created_at,
            updated_at=record.created_at,
            memory=Memory(created_at=record.created_at),
        )
        self.store.create(record, json.dumps(content).encode(), self.launch_spec.settings, first, made)

    def _admit(self, record: ReplicaRecord, request: RequestGlance, babysitter: Babysitter | None) -> ReplicaController:
        controller = ReplicaController(
            record,
            request,
            self.store,
            self.launch_spec,
            session=self.session,
            clock=self._clock,
            starts=self._starts,
            runner=self._runner,
            babysitter=babysitter,
            changed=self._tell_change,
            node=self.settings.node,
            retention_s=0.0 if DEPLOYMENT_KEY in request.metadata else self.settings.stopped_retention_s,
            rng=self._rng,
        )
        self._controllers[record.replica_id] = controller
        self._by_request[record.request_id] = record.replica_id
        self._scope.spawn(f"controller.{record.replica_id}", self._keep(controller))
        self._tell_change()
        return controller

    async def _keep(self, controller: ReplicaController) -> None:
        await controller.run()
        del self._controllers[controller.replica_id]
        if self._by_request.get(controller.record.request_id) == controller.replica_id:
            del self._by_request[controller.record.request_id]
        self._tell_change()

    def _tell_change(self) -> None:
        self.changed()


@dataclass(slots=True)
class _Arriving:
    """A replica whose directory is being made."""

    record: ReplicaRecord
    over: asyncio.Event = field(default_factory=asyncio.Event)


def needs_of(request: CheckedRequest | TemplateRequest, template: Need = NOTHING) -> Need:
    """What a request's replica needs: what it says itself, else what its template does."""
    return Need(
        accelerators=template.accelerators if request.accelerators is None else request.accelerators,
        memory_mb=template.memory_mb if request.memory_mb is None else request.memory_mb,
        shares=template.shares,
    )


def _new_id() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH))
