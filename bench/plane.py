"""What the router's own code takes for a request, without sockets: an earlier tree of this project beside this one.

    python bench/plane.py --before FOLDER [--rounds 40]
    python bench/plane.py --keys                            # a key with limits beside none, in this tree
    python bench/plane.py --costs [--json FILE]             # what each of keys, limits and accounts adds

Both trees must be compiled (deploy/python/compile.py). A process of each gives requests and answers to its data plane by hand; they take
turns, and each says its best of twelve passes. CPU per request of whole processes (bench/router.py) moves by four percent on
a shared machine, this by one: the kernel's part is not in it.
"""

import argparse
import asyncio
import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

ROOT = Path(__file__).resolve().parents[1]
PASSES = 12
TURNS = 10
"""Rounds of one pair of processes; then new ones, as where memory lies matters."""
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"hello "},"finish_reason":null}]}\n\n'
)
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + CHUNK,
    *[CHUNK] * 63,
    b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
)
BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":'
    b'"assistant","content":"%b"},"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":64,"total_tokens":74}}'
) % (b"x" * 350)
WHOLE = (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY),)
WORKLOADS = {"w1": (WHOLE, 400), "w2": (STREAM, 20)}
"""What the replica sends, piece by piece, and requests a pass."""
COSTS = {"key": ("", "+key"), "limits": ("+key", "+key+limits"), "accounts": ("", "+accounts")}
"""What a plane without it has, and one with it."""


class Wire:
    """A transport that takes everything and sends it nowhere."""

    last = b""

    def get_extra_info(self, name: str, default: object = None) -> object:
        """The address of a client."""
        return ("127.0.0.1", 5) if name == "peername" else default

    def write(self, data: bytes) -> None:
        """Take it."""
        self.last = data

    def writelines(self, lines: list[bytes]) -> None:
        """Take them."""
        self.write(b"".join(lines))

    def get_write_buffer_size(self) -> int:
        """All is sent at once."""
        return 0

    def is_closing(self) -> bool:
        """Never."""
        return False

    def nothing(self, *_args: object, **_more: object) -> None:
        """What makes no difference here."""

    pause_reading = resume_reading = close = abort = set_write_buffer_limits = nothing


def request_of(workload: str, *, keyed: bool) -> bytes:
    """A chat completion of 1 KB."""
    shown = b"authorization: Bearer secret\r\n" if keyed else b""
    stream = b"true" if workload == "w2" else b"false"
    body = b'{"model":"m","stream":%b,"messages":[{"role":"user","content":"%b"}]}' % (stream, b"y" * 1024)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
    return head % (shown, len(body)) + body


def limit(engine: Any, *, with_limits: bool) -> None:
    """Give the plane one key, perhaps with every kind of limit, and all that it may use."""
    from common.wire.leases import LeaseGrant  # noqa: PLC0415 - of the tree that is measured
    from router.keys import Key  # noqa: PLC0415

    most = 10**12
    digest = hashlib.sha256(b"secret").hexdigest()
    if not with_limits:
        engine.set_keys((Key("k", digest, models=("m",)),))
        return
    engine.set_keys(
        (Key("k", digest, models=("m",), requests_per_minute=most, tokens_per_minute=most, max_in_flight=most),)
    )
    for _, purse in engine.budgets.accounts["k"].purses():
        purse.grant(LeaseGrant(granted=most, left=most, limit=most), 0.0)


async def measure(workload: str) -> None:
    """Print µs per request, once for each line that is read."""
    from common.tasks import TaskScope  # noqa: PLC0415 - of the tree that is measured
    from router import compiled  # noqa: PLC0415

    if not compiled.activate():
        sys.exit("this tree is not compiled: run deploy/python/compile.py there")
    from router.counters import Shape, SharedCounters  # noqa: PLC0415
    from router.ledger import Ledger  # noqa: PLC0415
    from router.model import Endpoint, Table  # noqa: PLC0415
    from router.proxy.downstream import Downstream  # noqa: PLC0415
    from router.proxy.engine import Engine  # noqa: PLC0415
    from router.proxy.upstream import Upstream  # noqa: PLC0415
    from router.settings import RouterSettings  # noqa: PLC0415
    from router.worker import chooser_of, limits_of  # noqa: PLC0415

    workload, *features = workload.split("+")
    asked = request_of(workload, keyed="key" in features)
    pieces, count = WORKLOADS[workload]
    shape = Shape(2, 2)
    with tempfile.TemporaryFile() as board:
        board.truncate(shape.size_bytes)
        counters = SharedCounters(os.dup(board.fileno()), shape, 0)
    settings = RouterSettings()
    async with TaskScope("plane") as scope:
        control = Endpoint(id="control", name="control", host="router", port=0, slot=1, unix_path="/x")
        chooser = chooser_of(settings, None, counters)
        engine = Engine(limits=limits_of(settings), counters=counters, chooser=chooser, control=control, scope=scope)
        replica = Endpoint(id="e", name="bench", host="127.0.0.1", port=9, slot=0, models=("m",))
        engine.set_table(Table.of(1, (replica,)))
        if "key" in features:
            limit(engine, with_limits="limits" in features)
        if "accounts" in features:
            engine.ledger = Ledger()
        pool = engine.connector.pool(replica)
        wire, client = Wire(), Downstream(engine)
        client.connection_made(cast("Any", wire))

        def connected() -> Upstream:
            while pool.take() is not None:
                pass
            upstream = Upstream(pool)
            upstream.connection_made(cast("Any", Wire()))
            pool.give_back(upstream)
            return upstream

        def one(upstream: Upstream) -> None:
            client.data_received(asked)
            for piece in pieces:
                upstream.data_received(piece)

        one(connected())
        if engine.exchanges or not wire.last:
            sys.exit(f"a request was not answered: {wire.last[:200]!r}")
        answer_turns(connected, one, count)
        os._exit(0)


def answer_turns(connected: Callable[[], Any], one: Callable[[Any], None], count: int) -> None:
    """For each line that is read, print what `one` takes with what `connected` gives: the best of all passes."""
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    for _ in sys.stdin:
        upstream, best = connected(), float("inf")
        for _ in range(PASSES):
            began = time.perf_counter()
            for _ in range(count):
                one(upstream)
            best = min(best, time.perf_counter() - began)
        print(best / count * 1e6, flush=True)


class Plane:
    """A process that measures one tree."""

    def __init__(self, tree: Path, workload: str) -> None:
        self._tree = tree
        command = [sys.executable, "-P", __file__, "--measure", workload]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        self._process = subprocess.Popen(
            command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._line()

    def ask(self) -> float:
        """µs per request."""
        print(file=self._process.stdin, flush=True)
        return float(self._line())

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        line = cast("IO[str]", self._process.stdout).readline()
        if not line:
            sys.exit(f"the process over {self._tree} ended with {self._process.wait()}")
        return line


@dataclass(frozen=True, slots=True)
class Compared:
    """Medians of two planes, in µs per request, and of the ratios of their pairs with the 95 % interval of the sign test."""

    workload: str
    what: str
    before_us: float
    ours_us: float
    ratio: float
    ratio_low: float
    ratio_high: float
    pairs: int

    def line(self) -> str:
        """For people."""
        interval = f"{self.ratio_low:.3f}-{self.ratio_high:.3f}"
        figures = (
            f"before {self.before_us:.2f} us, ours {self.ours_us:.2f} us, ratio {self.ratio:.3f} (95 % {interval})"
        )
        return f"{' '.join(filter(None, (self.workload, self.what)))}: {figures}, {self.pairs} pairs"


def compare(
    before: Path, workload: str, rounds: int, *, features: tuple[str, str] = ("", ""), what: str = ""
) -> Compared:
    """The plane of this tree beside that of `before`, each with its `features`: of `key`, `limits`, `accounts`, each with a `+`."""
    pairs: list[tuple[float, float]] = []
    while len(pairs) < rounds:
        planes = Plane(before, workload + features[0]), Plane(ROOT, workload + features[1])
        for turn in range(TURNS):
            first, second = planes if turn % 2 else planes[::-1]
            taken = first.ask(), second.ask()
            pairs.append(taken if turn % 2 else taken[::-1])
        for plane in planes:
            plane.end()
    ratios = sorted(ours / theirs for theirs, ours in pairs)
    rank = max(int(len(ratios) / 2 - 0.98 * len(ratios) ** 0.5), 0)
    theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    middle = statistics.median(ratios)
    return Compared(workload, what, theirs, ours, middle, ratios[rank], ratios[-rank - 1], len(pairs))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="an earlier tree of this project")
    parser.add_argument("--rounds", type=int, default=40, help="pairs for each workload (default: 40)")
    parser.add_argument("--keys", action="store_true", help="with a key that has limits, beside none")
    parser.add_argument(
        "--costs", action="store_true", help="each of keys, limits and accounts beside a tree without it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        asyncio.run(measure(options.measure))
        return
    if options.before is None and not (options.keys or options.costs):
        parser.error("--before FOLDER is needed: what is compared with")
    before = options.before.resolve() if options.before else ROOT
    cases = COSTS if options.costs else {"": ("", "+key+limits" if options.keys else "")}
    done = []
    for workload in WORKLOADS:
        for what, features in cases.items():
            done.append(compare(before, workload, options.rounds, features=features, what=what))
            print(done[-1].line(), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in done], indent=1) + "\n")


if __name__ == "__main__":
    main()
