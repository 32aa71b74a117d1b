"""What `bench/registry.py` asks a registry, and the connections by which it does: cheap beside what they measure."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, cast

CONNECTIONS = 32


def report(number: int, beat: int) -> dict[str, Any]:
    """A replica report as a babysitter sends it; the load figures move."""
    return {
        "replica_id": f"replica{number:05}",
        "status": "ready",
        "display_status": "Active",
        "endpoint": f"http://10.0.0.{number % 250 + 1}:{9000 + number % 1000}",
        "base_url": f"http://10.0.0.{number % 250 + 1}:{9000 + number % 1000}",
        "port": 9000 + number % 1000,
        "workdir": f"/var/lib/inference-svc/replica{number:05}",
        "venv_path": f"/var/lib/inference-svc/replica{number:05}/cbclient",
        "replica_pid": 1000 + number,
        "restart_count": 0,
        "compile_wsjob": [f"wsjob-c{number:05}"],
        "execute_wsjob": [f"wsjob-e{number:05}"],
        "models": ["llama-3.1-70b"],
        "created_at": "2026-01-01T00:00:00.000Z",
        "ready_at": "2026-01-01T00:10:00.000Z",
        "updated_at": f"2026-01-01T01:00:{beat % 60:02}.000Z",
        "error_message": None,
        "running": (number + beat) % 32,
        "waiting": beat % 4,
        "instance_id": f"00000000-0000-4000-8000-{number:012}",
        "incarnation": 1,
    }


def registration(number: int, babysitter_port: int) -> dict[str, Any]:
    host = "127.0.0.1"
    return {
        "name": f"svc-{number:05}",
        "host": host,
        "port": babysitter_port - 1,
        "hostname": f"node-{number // 8:04}",
        "url": f"http://{host}:{babysitter_port - 1}",
        "status": "running",
        "metadata": {
            "type": "openai-api",
            "models": ["llama-3.1-70b"],
            "models_list": [{"id": "llama-3.1-70b"}],
            "metrics_path": "/metrics",
        },
        "instance_id": f"00000000-0000-4000-8000-{number:012}",
        "incarnation": 1,
        "ttl_s": 3600,
    }


def request(method: str, path: str, body: Any = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


class Connection(asyncio.Protocol):
    """Sends one request after the other and reads answers that have a Content-Length."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.chunks: list[bytes] = []
        self.missing = 0
        self.waiter: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none of asyncio's classes

    def data_received(self, data: bytes) -> None:
        if not self.chunks:  # the server sends a head in one piece
            end = data.index(b"\r\n\r\n") + 4
            head = data[:end].lower()
            self.missing = end + int(head[head.index(b"content-length:") + 15 :].split(b"\r\n", 1)[0])
        self.chunks.append(data)
        self.missing -= len(data)
        if not self.missing and self.waiter is not None:
            answer = b"".join(self.chunks)
            self.chunks.clear()
            self.waiter.set_result(answer)

    async def ask(self, raw: bytes) -> bytes:
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(raw)
        return await self.waiter


async def connect(port: int, count: int = CONNECTIONS) -> list[Connection]:
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(count)]


async def flood(connections: Sequence[Connection], requests: Sequence[bytes]) -> None:
    """Send all of them over the connections, as fast as the server answers; every answer must be a 2xx."""
    left = iter(requests)

    async def worker(connection: Connection) -> None:
        for raw in left:
            answer = await connection.ask(raw)
            if answer[9:10] != b"2":
                raise RuntimeError(answer.decode())

    await asyncio.gather(*map(worker, connections))


def close(connections: Sequence[Connection]) -> None:
    for connection in connections:
        connection.transport.close()
