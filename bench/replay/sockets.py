"""The replay through real sockets: a router as an operator starts it, mock replicas, and a client that keeps time."""

import asyncio
import contextlib
import json
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.replay import client
from bench.replay.mock import MODEL
from bench.replay.offline import Outcome, Setup
from bench.replay.traces import Request
from bench.router.machine import BenchError, cpu_s, free_port, started, tree, wait_until_answers
from bench.router.peers import PyPI

ROOT = Path(__file__).resolve().parents[2]
SGLANG = PyPI("sglang", "sglang-router==0.3.2", ["launch", "--log-level", "warn"])
READY_S = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where things run."""

    folder: Path
    router_core: int
    load_core: int
    workers: int
    speed: float
    bytes_per_token: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One replay: what the engines saw, and what it took."""

    outcome: Outcome
    cpu_us: float
    faults: int
    first_fault: str
    lag_p99_s: float


def replay(requests: Sequence[Request], setup: Setup, target: str, program: str, place: Place) -> Measured:
    """Send a trace through one router: a policy of ours, or `sglang:POLICY` with its `program`."""
    ports = [free_port() for _ in setup.kinds]
    there = [port for port, at_s in zip(ports, setup.joins_at_s or (0.0,) * len(ports), strict=True) if not at_s]
    router_port = free_port()
    with ExitStack() as stack:
        stack.enter_context(_mocks(ports, setup, place))
        for port in ports:
            _get(port, "/v1/models")
        words = (
            our_words(target, router_port, there, place.folder, place.workers, setup.read_ahead_s / place.speed)
            if not program
            else sglang_words(target, program, router_port, there)
        )
        log = place.folder / f"{target.replace(':', '-')}.log"
        router = stack.enter_context(started(words, core=place.router_core, log=log, folder=ROOT))
        small = client.raw_request(Request(0.0, 1, 1, (0,)), 1.0)
        wait_until_answers(router_port, small, router, log, READY_S)
        for port in ports:
            _get(port, "/figures")  # what was asked until now does not count
        before = _cpu_s(router.pid)
        sent = asyncio.run(
            client.send(
                router_port,
                requests,
                speed=place.speed,
                bytes_per_token=place.bytes_per_token,
                at=_joins(setup, ports, there, router_port, place, ours=not program),
            )
        )
        spent_s = _cpu_s(router.pid) - before
        outcome = Outcome()
        written = 0
        for port in ports:
            said = json.loads(_get(port, "/figures"))
            outcome.read_tokens.append(said["read_tokens"])
            written += said["written_tokens"]
            for ttft_s, hits, blocks in said["requests"]:
                outcome.ttft_s.append(ttft_s)
                outcome.hit_blocks += hits
                outcome.blocks += blocks
    if not sent.faults and written != sum(request.output_tokens for request in requests):
        raise BenchError(f"{target} changed how many tokens are asked for: its engines wrote {written}")
    lag = sorted(sent.lag_s)
    return Measured(
        outcome, spent_s * 1e6 / len(requests), sent.faults, sent.first_fault, lag[int(0.99 * (len(lag) - 1))]
    )


@contextmanager
def _mocks(ports: Sequence[int], setup: Setup, place: Place) -> Iterator[None]:
    """All replicas, in one process beside the client."""
    spec = {
        "speed": place.speed,
        "bytes_per_token": place.bytes_per_token,
        "reports": setup.reports,
        "replicas": [{"port": port, **asdict(kind)} for port, kind in zip(ports, setup.kinds, strict=True)],
    }
    words = [sys.executable, "-m", "bench.replay.mock", json.dumps(spec)]
    log = place.folder / "mock.log"
    with started(words, core=place.load_core, log=log, folder=ROOT) as process:
        for port in ports:
            wait_until_answers(port, b"GET /health HTTP/1.1\r\nhost: r\r\n\r\n", process, log, READY_S)
        yield


def our_words(  # noqa: PLR0917
    policy: str, port: int, replicas: Sequence[int], folder: Path, workers: int, read_ahead_s: float = 1.0
) -> list[str]:
    """The command of our router with that policy before replicas at those ports, which get so many real seconds ahead."""
    _write_services(replicas, folder)
    words = [sys.executable, "-m", "router", "--router-port", str(port), "--workers", str(workers)]
    words += ["--policy", policy, "--static-services", str(_services(folder)), "--data-dir", str(folder)]
    words += ["--read-ahead-s", str(read_ahead_s)]
    return [*words, "--registry-url", f"http://127.0.0.1:{free_port()}"]


def sglang_words(target: str, program: str, port: int, replicas: Sequence[int]) -> list[str]:
    """The command of sglang-router; `target` is `sglang:POLICY`."""
    words = [program, *SGLANG.flags, "--host", "127.0.0.1", "--port", str(port)]
    words += ["--policy", target.partition(":")[2], "--prometheus-port", str(free_port())]
    return [*words, "--worker-urls", *(f"http://127.0.0.1:{replica}" for replica in replicas)]


def _services(folder: Path) -> Path:
    return folder / "services.json"


def _write_services(replicas: Sequence[int], folder: Path) -> None:
    metadata = {"type": "openai-api", "models": [MODEL]}
    services = [
        {"name": f"replica-{port}", "host": "127.0.0.1", "port": port, "metadata": metadata} for port in replicas
    ]
    beside = _services(folder).with_suffix(".new")
    beside.write_text(json.dumps(services))
    beside.replace(_services(folder))


def _joins(
    setup: Setup, ports: Sequence[int], there: Sequence[int], router_port: int, place: Place, *, ours: bool
) -> list[tuple[float, Callable[[], None]]]:
    """How replicas that come later are told to the router."""

    def join(port: int) -> None:
        if ours:
            _write_services([*there, port], place.folder)
            return
        asked = urllib.request.Request(
            f"http://127.0.0.1:{router_port}/workers",
            data=json.dumps({"url": f"http://127.0.0.1:{port}"}).encode(),
            headers={"content-type": "application/json"},
        )
        asyncio.get_running_loop().run_in_executor(None, lambda: urllib.request.urlopen(asked, timeout=30).read())

    return [
        (at_s, lambda port=port: join(port))  # type: ignore[misc]  # a default binds the loop's value
        for port, at_s in zip(ports, setup.joins_at_s or (0.0,) * len(ports), strict=True)
        if at_s
    ]


def _cpu_s(pid: int) -> float:
    return sum(cpu_s(process.pid) for process in tree(pid))


def _get(port: int, path: str) -> bytes:
    with contextlib.closing(urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30)) as answer:
        said: bytes = answer.read()
    return said
