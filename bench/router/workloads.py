"""What the routers are asked: bodies of exact sizes, and how many connections send them for how long."""

import json
from dataclasses import dataclass
from typing import Any

MODEL = "m"
SENTENCE = "Explain the difference between a mutex and a semaphore, with a short example in C. "


@dataclass(frozen=True, slots=True)
class Workload:
    """What the load generator does."""

    title: str
    connections: int
    seconds: float
    body_bytes: int
    chunks: int = 64
    interval_us: int | None = None

    def request(self) -> bytes:
        """The request as it goes over the wire, its body `body_bytes` long."""
        content: dict[str, Any] = {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": ""},
            ],
            "temperature": 0.7,
            "max_tokens": self.chunks,
            "stream": self.interval_us is not None,
        }
        if self.interval_us is not None:
            content["seed"] = self.interval_us  # the backend's pause between two chunks
        room = self.body_bytes - len(json.dumps(content))
        content["messages"][1]["content"] = (SENTENCE * (room // len(SENTENCE) + 1))[:room]
        body = json.dumps(content).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n"
            "Accept-Encoding: identity\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 1.60.0\r\n"
            f"Authorization: Bearer sk-bench\r\nX-Request-Id: 5f1e0a7cb2d94a31\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


WORKLOADS = {
    "w1": Workload("W1: 1 KB prompt, answer of 0.6 KB, 32 connections", 32, 3.0, 1024),
    "w1c1": Workload("W1 with one connection: what a router adds", 1, 2.0, 1024),
    "w2": Workload("W2: 64 SSE chunks 5 ms apart, 64 streams", 64, 4.0, 1024, interval_us=5000),
    "w3": Workload("W3: 256 KB prompt, 8 connections", 8, 3.0, 262144),
}
STREAMS = "streams"
