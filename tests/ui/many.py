"""A fleet of many replicas that exists on paper only: records, reports, and a router's figures. Always the same."""

import contextlib
import json
import math
import random
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from common.clock import iso
from router.control.traffic import POINTS_KEPT, SAMPLE_S
from tests.ui.fleet import post

MODELS = ("llama-3.3-70b", "qwen2.5-72b", "qwen2.5-7b", "deepseek-r1", "gpt-oss-120b", "bge-m3")
ROUTER = "router-edge-1-8000"
ODD = {
    7: ("failed", "exit code 1, five times in ten minutes\ntorch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.25 GiB."),
    131: ("unhealthy", "no answer from /v1/models within 5 s, three times in a row"),
    262: ("waiting_for_ready", None),
    263: ("waiting_for_ready", None),
    264: ("creating", None),
    340: ("stopping", None),
    411: ("failed", "venv: no matching distribution found for cerebras-pytorch==260215.1"),
    477: ("starting", None),
}  # fmt: skip


def report(number: int, name: str, *, now: float) -> dict[str, Any]:
    """What a babysitter would report."""
    rng = random.Random(number)
    status, error = ODD.get(number, ("ready", None))
    jobs = [f"wsjob-{rng.getrandbits(40):010x}{suffix}" for suffix in ("c", "e")] if number % 9 == 0 else []
    return {
        "replica_id": name,
        "instance_id": f"i-{number}",
        "incarnation": 1,
        "status": status,
        "endpoint": f"http://10.0.{number // 25}.{number % 25 + 10}:8100" if status == "ready" else "NA",
        "restart_count": rng.choice((0, 0, 0, 0, 0, 1, 2)) if status == "ready" else rng.randint(0, 6),
        "compile_wsjob": jobs[:1],
        "execute_wsjob": jobs[1:],
        "wsjob_states": dict.fromkeys(jobs, "Running"),
        "models": [MODELS[number % len(MODELS)]],
        "ready_at": iso_at(now - rng.uniform(600, 9e5)) if status == "ready" else None,
        "updated_at": iso_at(now),
        "error_message": error,
        "replica_pid": 20_000 + number,
        "rss_mb": 2048 + 64 * rng.randint(0, 60),
        **(engine(number) if status == "ready" and number % 3 else {}),
    }


def engine(number: int) -> dict[str, Any]:
    """What its engine tells; every third tells nothing."""
    return {
        "running": number % 7,
        "waiting": number % 4,
        "kv_cache_usage": number % 100 / 100,
        "prefix_query_tokens": 123_456,
        "prefix_hit_tokens": 61_728,
    }


def iso_at(epoch_s: float) -> str:
    """ISO 8601 of epoch seconds."""
    return iso(datetime.fromtimestamp(epoch_s, UTC))


def name_of(number: int) -> str:
    """A replica's name."""
    return f"{MODELS[number % len(MODELS)].split('-')[0].replace('.', '')}-{number:03}"


def register(registry: str, count: int, port: int, *, per_node: int = 25) -> None:
    """Register `count` replicas as their babysitters would: two records each, and a report.

    Args:
        registry: URL.
        count: How many.
        port: Of all babysitters; every one has a loopback address of its own.
        per_node: Replicas of one node.
    """
    now = time.time()

    def one(number: int) -> None:
        name, node = name_of(number), f"node-{number // per_node + 1:02}"
        host = f"127.1.{number // per_node}.{number % per_node + 10}"
        body = report(number, name, now=now)
        common = {"hostname": node, "host": host, "status": "running", "instance_id": f"i-{number}", "incarnation": 1}
        records = [(name, port, {"type": "vLLM"})]
        if body["status"] in ("ready", "unhealthy", "stopping"):
            metadata = {"type": "openai-api", "models": body["models"], "parent_service": name}
            records.append((f"{name}-server", port - 1, metadata))
        for record, own_port, metadata in records:
            url = f"http://{host}:{own_port}"
            post(
                f"{registry}/services",
                {**common, "name": record, "port": own_port, "url": url, "metadata": metadata, "ttl_s": 3600},
            )
            post(f"{registry}/services/{record}/heartbeat", body)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(count)))


def points(now: float) -> list[dict[str, Any]]:
    """A quarter of an hour with a busy morning, one bad minute and three ejections."""
    rng = random.Random(1)
    made = []
    for index in range(POINTS_KEPT):
        x = index / POINTS_KEPT
        bad = 0.62 < x < 0.68
        load = 240 + 70 * math.sin(x * 5) + 25 * math.sin(x * 31) + rng.uniform(-12, 12)
        slow = 1.9 if bad else 1.0
        first = 0.18 * slow * (1 + 0.15 * math.sin(x * 9)) + rng.uniform(0, 0.02)
        gap = 0.021 * slow + rng.uniform(0, 0.0015)
        made.append(
            {
                "at": now - (POINTS_KEPT - index) * SAMPLE_S,
                "requests_s": round(load * (0.82 if bad else 1), 2),
                "errors_s": round(rng.uniform(3, 9), 2) if bad else (0.5 if rng.random() < 0.02 else 0.0),
                "retries_s": 0.0,
                "ejections": 1 if index in (282, 289, 297) else 0,
                "in_flight": round(load * 4.1 * slow + rng.uniform(-20, 20)),
                "first_byte_s": [round(first * factor, 4) for factor in (1, 2.6, 4.4)],
                "gap_s": [round(gap * factor, 5) for factor in (1, 1.9, 3.1)],
                "queue_s": None,
                "prompt_tokens_s": round(load * 1850),
                "cached_tokens_s": round(load * 1850 * (0.71 + 0.04 * math.sin(x * 7))),
                "completion_tokens_s": round(load * 212 * (0.7 if bad else 1)),
            }
        )
    return made


def timeline(number: int, now: float) -> dict[str, Any]:
    """What a babysitter tells of a start that took seven minutes, an hour ago."""
    began = now - 3600
    steps = [
        ("pending", "creating", "wanted", 0.0),
        ("creating", "starting", "the environment stands", 96.4),
        ("starting", "waiting_for_ready", "spawned", 0.2),
    ]
    if ODD.get(number, ("ready",))[0] == "failed":
        steps += [("waiting_for_ready", "failed", "exit code 1, five times in ten minutes", 41.0)]
    else:
        steps += [("waiting_for_ready", "ready", "answers", 318.6)]
    moves = []
    for before, after, cause, lasted_s in steps:
        began += lasted_s
        moves.append({"at": iso_at(began), "from": before, "to": after, "cause": cause, "lasted_s": lasted_s})
    starts = (
        ("venv", 3.1, "uv venv, CPython 3.11.7"),
        ("resolve", 11.8, ""),
        ("install", 74.9, "112 packages, 4.1 GiB"),
    )
    at, stages = now - 3600, []
    for name, took_s, detail in (*starts, ("verify", 6.4, "imports vllm 0.11.2")):
        state = {"state": "done", "began_at": iso_at(at), "took_s": took_s, "attempt": 1, "detail": detail}
        stages.append({"name": name, **state})
        at += took_s
    return {"transitions": moves, "stages": stages, "jobs": {}}


LOG = """INFO 11-21 21:58:03 [api_server.py:1839] vLLM API server version 0.11.2
INFO 11-21 21:58:11 [core.py:94] Initializing a V1 LLM engine (v0.11.2) with config: dtype=bfloat16, max_seq_len=32768
INFO 11-21 21:58:19 [parallel_state.py:1208] rank 0 in world size 4 is assigned as DP rank 0, PP rank 0, TP rank 0
INFO 11-21 21:59:02 [weight_utils.py:392] Time spent downloading weights: 0.52 seconds
Loading safetensors checkpoint shards: 100% Completed | 30/30 [02:41<00:00, 5.38s/it]
INFO 11-21 22:01:48 [gpu_model_runner.py:2653] Model loading took 32.89 GiB and 168.2 seconds
INFO 11-21 22:02:40 [backends.py:618] torch.compile takes 41.77 s in total
INFO 11-21 22:03:12 [kv_cache_utils.py:1229] GPU KV cache size: 412,848 tokens
INFO 11-21 22:03:21 [launcher.py:46] Route: /v1/chat/completions, Methods: POST
INFO:     Application startup complete.
INFO 11-21 22:57:31 [loggers.py:181] Engine 000: Avg generation throughput: 1418.2 tokens/s, Running: 6 reqs, Waiting: 0
INFO 11-21 22:57:41 [loggers.py:181] Engine 000: Avg generation throughput: 1377.9 tokens/s, Running: 5 reqs, Waiting: 0
"""


class _Quiet(BaseHTTPRequestHandler):
    def send(self, content: Any) -> None:
        raw = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class _Babysitter(_Quiet):
    def do_GET(self) -> None:
        number = 7 if self.connection.getsockname()[0] == "127.1.0.17" else 0
        if self.path.startswith("/logs"):
            self.send(LOG)
        else:
            self.send(timeline(number, time.time()) if self.path == "/timeline" else {})


class _Router(_Quiet):
    count: ClassVar[int] = 0

    def do_GET(self) -> None:
        now = time.time()
        since = float(self.path.partition("since=")[2] or 0)
        rng = random.Random(5)
        replicas = [
            {
                "name": f"{name_of(number)}-server",
                "standing": "fresh",
                "in_flight": rng.randint(0, 6),
                "requests_s": round(rng.uniform(0.1, 1.2), 2),
                "errors_s": 0.0 if number != 131 else 0.4,
                "ejections": 0,
                "ejected": number == 131,
            }
            for number in range(self.count)
        ]
        body = {"interval_s": SAMPLE_S, "points": [p for p in points(now) if p["at"] > since], "replicas": replicas}
        self.send({**body, "workers": 2, "connections": 80, "registry_error": None})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *args: Any) -> None:
        """A probe goes as soon as it has the status."""


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler], host: str) -> Iterator[int]:
    """A server in a thread; yields its port."""
    server = _Server((host, 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def serving_babysitter(answers: dict[str, Any]) -> Iterator[int]:
    """A babysitter, or an agent, that answers what it is given, by path; `{}` for others. It keeps what was posted."""

    class Told(_Quiet):
        def do_GET(self) -> None:
            self.send(answers.get(self.path.partition("?")[0], {}))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            answers.setdefault("posted", []).append(self.path)
            self.send({"replica_id": "", "status": "stopped", "message": ""})

    with serving(Told, "127.0.0.1") as port:
        yield port


@contextlib.contextmanager
def paper_fleet(registry: str, count: int) -> Iterator[None]:
    """Register it, with one server that answers for every babysitter, and one for the router."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    router = type("Router", (_Router,), {"count": count})
    with serving(_Babysitter, "0.0.0.0") as port, serving(router, "127.0.0.1") as router_port:
        register(registry, count, port)
        url = f"{registry}/v1/watch?router={ROUTER}&router_url=http://127.0.0.1:{router_port}"
        with opener.open(url, timeout=60) as watch:
            watch.readline()
            yield
