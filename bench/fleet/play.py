"""The process in which all replicas and nodes of `bench/fleet.py` are: orders come by stdin, answers go by stdout, as lines.

python -m bench.fleet.play PORT REGISTRY_URL…
"""

import asyncio
import gc
import itertools
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
import uvloop

from babysitter.lifecycle import ReplicaState
from bench.fleet.nodes import CAPACITY, Node, NodeFull, Replica, request_of
from bench.fleet.wire import encode, listen
from common.tasks import TaskScope
from common.wire.replica import Created, OneReplica, ReplicaInfo, ReplicaList, ReplicaMessage
from common.wire.words import ReplicaStatus

FIRST_MARK = 1_000_000
START_S = 1.0
RECENT, SLOW_S = 50, 0.1
"""While half of so many heartbeats take longer than that, nobody begins: who fills a machine to the brim learns nothing from it."""
STUCK_S = 180.0
"""Without a new one: it will not get better."""
LOOK_S = 0.05
MOST_TRIES = 1000
"""To come upon a replica that is ready, by chance."""
MOST_STARTING = 16
"""Replicas that begin at a time: the next comes when one of them has both records, as with a rollout or racks switched on in turn."""
CHAT = encode(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
)
MODELS_LIST = encode({"object": "list", "data": [{"id": "m", "object": "model"}]})
"""Asked for once in the life of a replica: its records say which models it has."""


class Play:
    """All of it."""

    def __init__(self, port: int, urls: list[str], scope: TaskScope) -> None:
        self.port, self.urls, self.scope = port, urls, scope
        self.nodes: dict[str, Node] = {}
        """By address."""
        self.replicas: dict[str, Replica] = {}
        """Those that no deployment made."""
        self.took: list[float] = []
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.marks = itertools.count(FIRST_MARK)
        self.made, self.numbers = itertools.count(), itertools.count()
        self.probed = 0
        self.late_s = 0.0
        """The longest that this process itself was late since it last told: all that it measures may be too long by that."""

    def note(self, seconds: float) -> None:
        """A heartbeat took so long."""
        self.took.append(seconds)
        self.recent.append(seconds)

    async def watch_itself(self) -> None:
        """See how late a turn of the loop is, for ever."""
        while True:
            due = time.monotonic() + LOOK_S
            await asyncio.sleep(LOOK_S)
            self.late_s = max(self.late_s, time.monotonic() - due)

    # What others ask.

    def answer(self, host: str, port: int, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """What a node answers at one of its ports."""
        node = self.nodes[host]
        if port == self.port:
            return self._agent(node, method, path, body)
        slot = (port - self.port - 1) // 2
        if not any(one.slot == slot and one.state is ReplicaState.READY for one in node.replicas.values()):
            return 503, b'{"status":"starting"}'
        if path == "/health":
            self.probed += 1
            return 200, b'{"status":"healthy"}'
        if path == "/v1/models":
            return 200, MODELS_LIST
        return (200, CHAT) if path.endswith("/chat/completions") else (404, b'{"error":"not found"}')

    def _agent(self, node: Node, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        replica_id = path.removeprefix("/api/v1/replicas").lstrip("/")
        replica = node.replicas.get(replica_id)
        if path == "/health":
            return 200, b'{"status":"healthy"}'
        if method == "POST" and not replica_id:
            return self._create(node, msgspec.json.decode(body))
        if method == "GET" and not replica_id:
            infos = [_info(one) for one in node.replicas.values()]
            return 200, encode(ReplicaList(total=len(infos), replicas=infos))
        if replica is None:
            return 404, b'{"error":"no such replica"}'
        if method == "DELETE":
            del node.replicas[replica_id]
            self.scope.spawn("end", replica.end(leave=True))
            return 200, encode(ReplicaMessage(replica_id=replica_id, status=ReplicaStatus.STOPPED, message="removed"))
        return 200, encode(OneReplica(replica_id=replica_id, status=_info(replica).status, info=_info(replica)))

    def _create(self, node: Node, body: dict[str, Any]) -> tuple[int, bytes]:
        requested = request_of(body)
        for one in node.replicas.values():
            if one.spec.requested.request_id == requested.request_id:
                created = Created(replica_id=one.name, status=_info(one).status, message="is there")
                return 200, encode(created)
        try:
            slot = node.free_slot()
        except NodeFull:
            return 507, b'{"error":"the node is full"}'
        replica = Replica(node, f"made-{next(self.made):06}", slot, requested.model_name or "m", requested)
        node.replicas[replica.name] = replica
        self.scope.spawn("make", self._begin(replica))
        return 201, encode(
            Created(replica_id=replica.name, status=ReplicaStatus.STARTING, message="made", base_url=None)
        )

    async def _begin(self, replica: Replica) -> None:
        await replica.start()
        await asyncio.sleep(START_S)
        if replica.node.alive and replica.name in replica.node.replicas:
            replica.become(ReplicaState.READY)

    # What the bench orders.

    async def grow(self, *, nodes: int, replicas: int, models: int, within_s: float) -> dict[str, Any]:
        """Have so many, evenly spread, in no less than a time: a tenth of it is the nodes', the rest is the replicas'."""
        nodes_s = within_s / 10
        for number in range(len(self.nodes), nodes):
            node = Node(number, self.urls, self.port, self.note)
            self.nodes[node.host] = node
            node.start_agent(self.scope)
            await asyncio.sleep(nodes_s / nodes)
        alive = [one for one in self.nodes.values() if one.alive]
        wanted = replicas - len(self.replicas)
        starting = asyncio.Semaphore(MOST_STARTING)

        async def begin(replica: Replica) -> None:
            await self._begin(replica)
            while replica.reporter.server.registered_as is None and replica.node.alive:  # noqa: ASYNC110 - a lease tells nobody
                await asyncio.sleep(LOOK_S)
            starting.release()

        began = time.monotonic()
        for step, number in zip(range(wanted), self.numbers, strict=False):
            node = min(alive, key=lambda one: len(one.replicas))
            slot = node.free_slot()
            replica = Replica(
                node, f"replica-{number:06}", slot, f"model-{(number + number // models) % models}"
            )  # no node has all of one
            node.replicas[replica.name] = self.replicas[replica.name] = replica
            try:
                async with asyncio.timeout(STUCK_S):
                    while len(self.recent) == RECENT and statistics.median(self.recent) > SLOW_S:  # noqa: ASYNC110
                        await asyncio.sleep(LOOK_S)
                    await starting.acquire()
            except TimeoutError:
                return {"stuck_at": len(self.replicas)}
            self.scope.spawn("begin", begin(replica))
            due = began + (within_s - nodes_s) * (step + 1) / wanted
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        return {}

    def _one_of(self, replicas: Sequence[Replica]) -> Replica:
        """Some replica that is ready; all of ten thousand are not looked through, which would keep everybody waiting.

        Raises:
            RuntimeError: Hardly any is.
        """
        for _ in range(MOST_TRIES):
            replica = random.choice(replicas)  # noqa: S311 - a model's chance
            if replica.node.alive and replica.state is ReplicaState.READY:
                return replica
        raise RuntimeError("hardly any replica is ready")

    async def change(self, *, every_s: float, seconds: float) -> dict[str, Any]:
        """Have now one replica, now another tell something new; when each did so, by mark."""
        sent = {}
        replicas = list(self.replicas.values())
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            replica, mark = self._one_of(replicas), next(self.marks)
            sent[mark] = time.monotonic()
            replica.tell(mark)
            await asyncio.sleep(every_s)
        return {"sent": sent}

    async def churn(self, *, per_s: float, seconds: float) -> dict[str, Any]:
        """Have replicas end and begin anew."""
        replicas = list(self.replicas.values())
        until, count = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            replica = self._one_of(replicas)
            replica.state = ReplicaState.STOPPED
            count += 1
            self.scope.spawn("again", self._again(replica))
            await asyncio.sleep(1 / per_s)
        return {"restarted": count}

    async def _again(self, replica: Replica) -> None:
        await replica.end(leave=True)
        await self._begin(replica)

    async def kill(self, *, nodes: int) -> dict[str, Any]:
        """The power of some nodes goes."""
        dying = [one for one in self.nodes.values() if one.alive][:nodes]
        records = sum(1 + 2 * len(one.replicas) for one in dying)
        for node in dying:
            await node.die()
            for name in node.replicas.keys() & self.replicas.keys():
                del self.replicas[name]
        return {"records": records}

    async def tell(self) -> dict[str, Any]:
        """What heartbeats took since the last time."""
        took, self.took[:] = sorted(self.took), []
        refusals = [one for node in self.nodes.values() for one in node.refusals]
        ready = sum(one.state is ReplicaState.READY for node in self.nodes.values() for one in node.replicas.values())
        probed, self.probed = self.probed, 0
        late_s, self.late_s = self.late_s, 0.0
        figures = {
            "beats": len(took),
            "ready": ready,
            "refusals": len(refusals),
            "probed": probed,
            "late_ms": late_s * 1e3,
        }
        if refusals:
            figures["refusal"] = refusals[-1]
        if took:
            figures |= {"p50_ms": statistics.median(took) * 1e3, "p99_ms": took[int(len(took) * 0.99)] * 1e3}
        return figures


def _info(replica: Replica) -> ReplicaInfo:
    return ReplicaInfo(
        replica_id=replica.name,
        status=ReplicaStatus.READY if replica.state is ReplicaState.READY else ReplicaStatus.STARTING,
        request_id=replica.spec.requested.request_id,
        metadata={"node": replica.node.name, **replica.spec.requested.metadata},
    )


async def main(port: int, urls: list[str]) -> None:
    """Do what is ordered until stdin ends."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async with TaskScope("play") as scope:
        play = Play(port, urls, scope)
        scope.spawn("itself", play.watch_itself(), service=True)
        for offset in range(1 + 2 * CAPACITY):
            await listen(port + offset, play.answer)

        async def obey(order: dict[str, Any]) -> None:
            number, verb = order.pop("number"), order.pop("do")
            try:
                told = await getattr(play, verb)(**order)
            except Exception as error:  # noqa: BLE001 - whoever ordered it raises it
                told = {"failed": f"{verb}: {error!r}"}
            print(encode({"number": number, **told}).decode(), flush=True)

        while line := await orders.readline():
            scope.spawn("order", obey(msgspec.json.decode(line)))


if __name__ == "__main__":
    gc.disable()  # ten thousand replicas are millions of objects, and all would wait while these are looked through
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    uvloop.run(main(int(sys.argv[1]), sys.argv[2:]))
