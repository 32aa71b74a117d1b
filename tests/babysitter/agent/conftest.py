"""An agent within the test, whose babysitters are light ones; and an agent as a process."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request

from babysitter import identity
from babysitter.agent import processes
from babysitter.agent.api import AGENT, AgentContext
from babysitter.agent.launch_spec import make_launch_spec
from babysitter.agent.manager import ReplicaManager
from babysitter.agent.routes import make_app
from babysitter.agent.settings import AgentSettings
from babysitter.agent.store import ReplicaStore
from common.clock import SystemClock
from common.http.audit import AUDIT_FILE, AuditLog
from common.http.client import make_session
from common.tasks import TaskScope
from tests import ports
from tests.babysitter.agent.light_command import LIGHT
from tests.ports import free_port

Client = TestClient[Request, Application]
StartAgent = Callable[..., Awaitable[Client]]
WAIT_S = 120.0


def port_range(count: int = 1000) -> dict[str, int]:
    """A range of ports that other tests are unlikely to use at this moment."""
    share = ports.FIRST + (free_port() - ports.FIRST) // ports.SHARE * ports.SHARE
    first = share + random.randrange(0, ports.SHARE - count, 2)
    return {"first_port": first, "last_port": first + count - 1}


def end_all(root: Path) -> bool:
    """Kill every babysitter under `root`, and what carries the marks of its replicas; whether there was any."""
    found = processes.scan(root)
    for babysitters in found.values():
        for babysitter in babysitters:
            identity.send(babysitter.process, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(babysitter.process.pid, 0)
    for attempts in root.glob("*/attempts"):
        processes.end_servers(attempts)
    return bool(found)


@asynccontextmanager
async def agent_app(settings: AgentSettings, token: str | None = None) -> AsyncIterator[Application]:
    """An agent that has adopted what is there."""
    store = ReplicaStore(settings.local_workdir_root)
    store.acquire()
    try:
        launch_spec = make_launch_spec(settings, dict(os.environ), store.root)
        async with make_session(timeout_s=10, limit=0) as session, TaskScope("agent") as scope:
            manager = ReplicaManager(settings, store, launch_spec, session=session, scope=scope, clock=SystemClock())
            manager.adopt()
            audit = AuditLog(store.root / AUDIT_FILE, f"agent {settings.node}")
            yield make_app(AgentContext(manager, settings.node, token, audit=audit))
    finally:
        store.release()


@pytest.fixture
async def start_agent(aiohttp_client: Any, tmp_path: Path) -> AsyncIterator[StartAgent]:
    """Start an agent within the test; its babysitters end with the test."""
    root = tmp_path / "root"
    roots = {root}
    async with AsyncExitStack() as stack:

        async def start(token: str | None = None, **changes: Any) -> Client:
            given = {"node": "n1", "local_workdir_root": root, "babysitter_command": LIGHT, **port_range(), **changes}
            settings = AgentSettings(**given)
            roots.add(settings.local_workdir_root)
            app = await stack.enter_async_context(agent_app(settings, token))
            client: Client = await aiohttp_client(app)
            return client

        yield start
    # Only now: an agent that still runs starts again what is killed.
    for each in roots:
        while await asyncio.to_thread(end_all, each):
            await asyncio.sleep(0.1)


@pytest.fixture
async def client(start_agent: StartAgent) -> Client:
    """An agent with its defaults."""
    return await start_agent()


def manager_of(client: Client) -> ReplicaManager:
    """The inside of an agent."""
    return client.app[AGENT].manager


def wanted(**changes: Any) -> dict[str, Any]:
    """A create request."""
    return {"server_mode": "replica", "model_name": "m", "placement": {"app_tag": "build-1b83940b24"}, **changes}


async def create(client: Client, **changes: Any) -> str:
    """Make a replica; its id."""
    async with client.post("/api/v1/replicas", json=wanted(**changes)) as answer:
        content = await answer.json()
        assert answer.status == 201, content
        return str(content["replica_id"])


async def info(client: Client, replica_id: str) -> dict[str, Any]:
    """The replica's info; `{}` when it is not known."""
    async with client.get(f"/api/v1/replicas/{replica_id}") as answer:
        return dict((await answer.json()).get("info", {}))


async def reached(client: Client, replica_id: str, *statuses: str) -> dict[str, Any]:
    """Wait until the replica has one of these statuses ("" for: not known any more); its info."""
    async with asyncio.timeout(WAIT_S):
        while True:
            found = await info(client, replica_id)
            if found.get("status", "") in statuses:
                return found
            await asyncio.sleep(0.03)
