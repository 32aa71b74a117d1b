"""A node's agent of the tests' own: it makes pretended replicas, reports them, and remembers every call."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from common.clock import now_iso
from tests.ports import free_port

_NUMBERS = itertools.count(1)


@dataclass
class FakeAgent:
    """One node.

    Args:
        registries: URLs; heartbeats go to the first that answers.
        node: Its name.
        accelerators: How many it has; each replica gets as many as it asks for.
        start_s: From the create call until ready.
        refuse: Answer create calls with this text.
        answer_delay_s: From a replica's making to the answer of its create call.
        sleeps: Its template says that its replicas sleep; they do unless `sleepless`.
    """

    registries: list[str]
    node: str = "n1"
    accelerators: int = 4
    start_s: float = 0.2
    refuse: str = ""
    answer_delay_s: float = 0.0
    sleeps: bool = False
    sleepless: bool = False
    silent: bool = False
    port: int = field(default_factory=free_port)
    replicas: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    incarnation: int = 1

    def live(self, deployment: str = "") -> list[dict[str, Any]]:
        """Replicas that are not over."""
        return [
            it
            for it in self.replicas.values()
            if it["status"] not in ("stopped", "failed") and (not deployment or it["deployment"] == deployment)
        ]

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        if self.refuse:
            return web.json_response({"error": self.refuse}, status=503)
        request_id = body["request_id"]
        for replica in self.replicas.values():
            if replica["request_id"] == request_id:
                return web.json_response(self._created(replica), status=200)
        number = next(_NUMBERS)
        replica = {
            "replica_id": f"r{number:011d}",
            "request_id": request_id,
            "status": "starting",
            "created_at": now_iso(),
            "status_since": now_iso(),
            "ready_at": None,
            "deployment": body["metadata"]["deployment"],
            "metadata": body["metadata"],
            "accelerators": body.get("accelerators", 1),
        }
        self.made[request_id] += 1
        self.replicas[replica["replica_id"]] = replica
        asyncio.get_running_loop().call_later(self.start_s, self._becomes_ready, replica)
        await asyncio.sleep(self.answer_delay_s)
        return web.json_response(self._created(replica), status=201)

    @staticmethod
    def _created(replica: dict[str, Any]) -> dict[str, Any]:
        return {
            "replica_id": replica["replica_id"],
            "status": "pending",
            "message": "",
            "request_id": replica["request_id"],
        }

    def _becomes_ready(self, replica: dict[str, Any]) -> None:
        if replica["status"] == "starting":
            replica.update(status="ready", ready_at=now_iso(), status_since=now_iso())

    async def listing(self, request: web.Request) -> web.Response:
        del request
        infos = [self._info(it) for it in self.replicas.values()]
        return web.json_response({"total": len(infos), "replicas": infos})

    async def one(self, request: web.Request) -> web.Response:
        replica = self.replicas.get(request.match_info["id"])
        if replica is None:
            return web.json_response({"error": "not found"}, status=404)
        info = self._info(replica)
        return web.json_response({"replica_id": info["replica_id"], "status": info["status"], "info": info})

    async def delete(self, request: web.Request) -> web.Response:
        replica_id = request.match_info["id"]
        self.calls.append(f"DELETE {replica_id}")
        if self.replicas.pop(replica_id, None) is None:
            return web.json_response({"error": "not found"}, status=404)
        return web.json_response({"replica_id": replica_id, "status": "stopped", "message": ""})

    async def rouse(self, request: web.Request) -> web.Response:
        replica_id, verb = request.match_info["id"], request.match_info["verb"]
        self.calls.append(f"{verb} {replica_id}")
        if self.sleepless:
            return web.json_response({"error": "it cannot sleep", "code": "cannot_sleep"}, status=409)
        status = {"sleep": "asleep", "wake": "ready"}[verb]
        self.replicas[replica_id].update(status=status, ready_at=now_iso(), status_since=now_iso())
        return web.json_response({"replica_id": replica_id, "status": status, "message": ""}, status=202)

    def _info(self, replica: dict[str, Any]) -> dict[str, Any]:
        shown = ("replica_id", "request_id", "status", "created_at", "status_since", "ready_at")
        info = {key: replica[key] for key in shown if replica[key] is not None}
        return {**info, "metadata": {**replica["metadata"], "node": self.node}}

    def report(self) -> dict[str, Any]:
        """Body of a heartbeat."""
        live = self.live()
        slots: list[dict[str, Any]] = [
            {"index": index, "kind": "mock", "memory_mb": 1000, "replicas": []} for index in range(self.accelerators)
        ]
        free = iter(slots)
        for replica in live:
            for _ in range(replica["accelerators"]):
                slot = next(free, None)
                if slot is not None:
                    slot["replicas"].append(replica["replica_id"])
        return {
            "instance_id": self.node,
            "incarnation": self.incarnation,
            "node": self.node,
            "replicas_live": len(live),
            "capacity": 16,
            "replicas": [self._info(it) for it in self.replicas.values()],
            "accelerators": slots,
            "templates": [
                {
                    "name": "mock",
                    "accelerators": 1,
                    "sleeps": self.sleeps,
                    "digest": "d",
                    "parameters": {
                        "type": "object",
                        "properties": {
                            "model": {"type": "string"},
                            "start_delay_s": {"type": "number", "minimum": 0},
                        },
                        "required": ["model"],
                        "additionalProperties": False,
                    },
                }
            ],
        }

    def _registration(self) -> dict[str, Any]:
        return {
            "name": f"agent-{self.node}",
            "host": "127.0.0.1",
            "port": self.port,
            "hostname": "h",
            "url": f"http://127.0.0.1:{self.port}",
            "status": "running",
            "metadata": {"type": "node-agent", "node": self.node},
            "instance_id": self.node,
            "incarnation": self.incarnation,
            "ttl_s": 2.0,
        }

    async def beat(self, session: aiohttp.ClientSession) -> None:
        """One heartbeat, at a registry that answers."""
        for url in self.registries:
            try:
                where = f"{url}/services/agent-{self.node}/heartbeat"
                async with session.post(where, json=self.report()) as answer:
                    if answer.status == 200:
                        return
                async with session.post(f"{url}/services", json=self._registration()) as answer:
                    if answer.status in (200, 201):
                        continue
            except (aiohttp.ClientError, TimeoutError):
                continue

    async def run(self) -> None:
        """Heartbeats for ever."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while True:
                if not self.silent:
                    await self.beat(session)
                await asyncio.sleep(0.1)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeAgent"]:
        """While it listens and beats."""
        app = web.Application()
        app.router.add_post("/api/v1/replicas", self.create)
        app.router.add_get("/api/v1/replicas", self.listing)
        app.router.add_get("/api/v1/replicas/{id}", self.one)
        app.router.add_delete("/api/v1/replicas/{id}", self.delete)
        if self.sleeps:
            app.router.add_post("/api/v1/replicas/{id}/{verb:sleep|wake}", self.rouse)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        beating = asyncio.ensure_future(self.run())
        try:
            yield self
        finally:
            beating.cancel()
            await asyncio.wait({beating})
            await runner.cleanup()
