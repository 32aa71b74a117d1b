"""The keeper's rounds beside everything else that a registry does."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from common.clock import SystemClock
from common.tasks import TaskScope
from common.wire.deployment import Demand, ModelDemand
from common.wire.specification import DeploymentSpec
from registry.core.documents import Document, Fence
from registry.deployments import fold
from registry.deployments.keeper import Keeper
from registry.deployments.planner import plan
from registry.deployments.stored import changed, encode
from registry.fleet.index import FleetIndex
from registry.store.memory import MemoryDocuments, MemoryStore

Unused: Any = None


def keeper_of(store: MemoryStore, scope: TaskScope) -> Keeper:
    return Keeper(store=store, index=FleetIndex(), writer=Unused, agents=Unused, clock=SystemClock(), scope=scope)


async def with_one(store: MemoryStore) -> None:
    spec = DeploymentSpec.model_validate({"template": "mock"})
    stored, _ = changed("chat", None, spec, uid="u", at="2026-01-01T00:00:00Z")
    await store.documents.write("deployments/chat", encode(stored), version=0)


async def test_a_plan_is_made_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it costs, no heartbeat waits for it."""
    goes_on, threads = threading.Event(), []

    def slow(made: Callable[..., Any]) -> Callable[..., Any]:
        def work(*arguments: Any, **more: Any) -> Any:
            threads.append(threading.get_ident())
            assert goes_on.wait(20), "the loop is held"
            return made(*arguments, **more)

        return work

    monkeypatch.setattr("registry.deployments.fold.plan", slow(plan))
    monkeypatch.setattr(fold, "statuses", slow(fold.statuses))
    store = MemoryStore()
    await with_one(store)
    async with TaskScope("test") as scope:
        keeper = keeper_of(store, scope)
        round_ = asyncio.create_task(keeper.round())
        while not threads:
            await asyncio.sleep(0)
        goes_on.set()
        await round_
        assert len(threads) == 2
        assert threading.get_ident() not in threads
        assert keeper.shown.statuses["chat"].phase == "unschedulable"


class Followed(MemoryDocuments):
    """Somebody else leads; every call is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    async def lead(self) -> Fence | None:
        return None

    async def read(self, prefix: str) -> Mapping[str, Document]:
        self.calls[f"read {prefix}"] += 1
        return await super().read(prefix)

    async def say(self, key: str, value: bytes) -> None:
        assert value
        self.calls[f"say {key[:7]}"] += 1


async def test_a_registry_that_follows_reads_no_more_than_it_must_while_there_is_no_deployment() -> None:
    store = MemoryStore()
    store.documents = followed = Followed()
    async with TaskScope("test") as scope:
        keeper = keeper_of(store, scope)
        keeper.heard("r", Demand(models={"m": ModelDemand(waiting=1)}))
        await keeper.round()
        assert followed.calls == {"read deployments/": 1}
        await with_one(store)
        await keeper.round()
        assert followed.calls == {"read deployments/": 2, "read status/": 1, "say demand/": 1}
