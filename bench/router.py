"""What a request costs in our router and in others, with the router's bounds.

    python bench/router.py --install [--repetitions 5] [--json FILE]

Starts everything itself, on loopback: a backend and a load generator (C, built on demand), nginx, sglang-router and our
router as an operator starts it. Each router has one core, client and backend share another. Every repetition asks all
targets under one workload in turn; CPU is that of the router's whole process tree, user and system, from /proc. Figures
of one target drift with the machine; the ratios of the pairs are what to quote.

  w1      1 KB prompt, answer of 0.6 KB, 32 connections
  w1c1    the same, one connection: the time a router adds
  w2      64 SSE chunks 5 ms apart, 64 streams: also the time to the first byte
  w3      256 KB prompt, 8 connections
  streams 10,000 open SSE streams, a chunk a second, in one worker of ours: memory of each, and whether any starves
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # a script's own folder comes first otherwise, and holds a `router` that is not the router

from bench.flags import names_of  # noqa: E402 - see above
from bench.router import figures  # noqa: E402 - see above
from bench.router.figures import BEFORE, DIRECT, OURS, Sample, Streams  # noqa: E402
from bench.router.machine import (  # noqa: E402
    BenchError,
    cpu_of,
    describe,
    free_port,
    load_average,
    memory_bytes,
    raise_file_limit,
    started,
    tree_cpu_s,
    wait_until_answers,
)
from bench.router.peers import (  # noqa: E402
    PEERS,
    TLS_CLIENT,
    Command,
    Ours,
    Peer,
    Place,
    build_programs,
    make_pair,
)
from bench.router.workloads import STREAMS, WORKLOADS, Workload  # noqa: E402

WARM_S = 0.7
START_WITHIN_S = 60.0
STREAM_CHUNKS, STREAM_INTERVAL_S = 30, 1.0
SPARE_FILES = 128


@dataclass(frozen=True, slots=True)
class Target:
    """Something that answers: a router in front of the backend, or the backend itself."""

    name: str
    port: int
    pid: int


class Bench:
    """One comparison: the programs, the folders and the cores.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.files_limit = raise_file_limit()
        self.work: Path = options.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.load, self.backend = build_programs(self.work)
        self.commands: dict[str, str] = {}
        self.pair = make_pair(self.work) if options.tls else None
        self.tls_client = TLS_CLIENT.prepare(self.work, install=options.install) if options.tls else ""

    @contextmanager
    def running(self, names: Sequence[str], programs: dict[str, tuple[Peer, str]]) -> Iterator[list[Target]]:
        """The backend and the named targets, ready, until the block ends."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=self.work)))
            port = free_port()
            alone = Command([str(self.backend), str(port)], folder)
            targets = [self._start(stack, DIRECT, port, alone, core=self.options.load_core)]
            for name in names:
                if name == DIRECT:
                    continue
                peer, program = programs[name]
                place = Place(free_port(), port, folder / name, self.files_limit, self.pair)
                place.folder.mkdir()
                made = peer.command(program, place)
                self.commands[name] = shlex.join(made.words)
                targets.append(self._start(stack, name, place.port, made, core=self.options.router_core, folder=folder))
            yield [target for target in targets if target.name in names]

    def _start(
        self, stack: ExitStack, name: str, port: int, made: Command, *, core: int, folder: Path | None = None
    ) -> Target:
        log = self.work / f"{name}.log"
        process = stack.enter_context(started(made.words, core=core, log=log, folder=made.folder, env=made.env))
        if self.pair is not None and folder is not None:
            place = Place(free_port(), port, folder / f"{name}-client", self.files_limit)
            place.folder.mkdir()
            way = TLS_CLIENT.command(self.tls_client, place)
            stack.enter_context(
                started(
                    way.words,
                    core=self.options.load_core,
                    log=self.work / f"{name}-client.log",
                    folder=place.folder,
                    env=way.env,
                )
            )
            port = place.port
        wait_until_answers(port, WORKLOADS["w1"].request(), process, log, START_WITHIN_S)
        return Target(name, port, process.pid)

    def ask(self, port: int, workload: Workload, seconds: float) -> dict[str, Any]:
        """Run the load generator; returns what it printed last."""
        done = subprocess.run(
            self._load(port, workload.connections, seconds), input=workload.request(), capture_output=True, check=True
        )
        printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return printed

    def _load(self, port: int, connections: int, seconds: float) -> list[str]:
        return ["taskset", "-c", str(self.options.load_core), str(self.load), str(port), str(connections), str(seconds)]

    def sample(self, target: Target, key: str, repetition: int) -> Sample:
        """Warm up, then measure one target under one workload."""
        workload = WORKLOADS[key]
        self.ask(target.port, workload, WARM_S)
        before, before_s = cpu_of(target.pid), tree_cpu_s(target.pid)
        got = self.ask(target.port, workload, workload.seconds * self.options.scale)
        spent, spent_s = cpu_of(target.pid) - before, tree_cpu_s(target.pid) - before_s
        count = max(1, got["requests"])
        return Sample(
            target=target.name,
            workload=key,
            repetition=repetition,
            requests=got["requests"],
            cpu_us=spent_s * 1e6 / count,
            system_us=spent.system_s * 1e6 / count,
            per_second=got["requests"] / got["seconds"],
            core_share=spent_s / got["seconds"],
            duration_us=got["duration_p50_us"],
            duration_p99_us=got["duration_p99_us"],
            first_byte_us=got["first_byte_p50_us"],
            body_bytes=got["body_bytes"] / count,
            faults=got["errors"] + got["bad_status"] + got["unfinished"],
            memory_mb=memory_bytes(target.pid) / 1e6,
        )

    def streams(self, target: Target) -> Streams:
        """Many streams at once through one fresh router."""
        count = min(self.options.streams, (self.files_limit - SPARE_FILES) // 2)
        if count < self.options.streams:
            note(
                f"{count:,} streams instead of {self.options.streams:,}: at most {self.files_limit:,} files may be open"
            )
        self.ask(target.port, WORKLOADS["w1"], WARM_S)
        interval_us = int(STREAM_INTERVAL_S * 1e6)
        workload = Workload("streams", count, 0, 1024, chunks=STREAM_CHUNKS, interval_us=interval_us)
        empty, before = memory_bytes(target.pid), cpu_of(target.pid)
        with tempfile.TemporaryFile() as request:
            request.write(workload.request())
            request.seek(0)
            load = subprocess.Popen(self._load(target.port, count, 0), stdin=request, stdout=subprocess.PIPE)
        try:
            assert load.stdout is not None  # noqa: S101 - asked for above
            opened = json.loads(load.stdout.readline())
            note(f"{opened['open']:,} streams are open")
            if opened["open"] < count:
                raise BenchError(f"only {opened['open']:,} of {count:,} streams were open at once; see {self.work}")
            time.sleep(STREAM_CHUNKS * STREAM_INTERVAL_S / 4)
            full = memory_bytes(target.pid)
            got = json.loads(load.stdout.readline())
        finally:
            load.kill()
            load.wait()
        spent = cpu_of(target.pid) - before
        return Streams(
            target=target.name,
            asked=count,
            ended=got["requests"],
            faults=got["errors"] + got["bad_status"] + got["unfinished"],
            chunks=STREAM_CHUNKS,
            interval_s=STREAM_INTERVAL_S,
            kb_per_stream=(full - empty) / 1000 / count,
            cpu_us_per_chunk=spent.all_s * 1e6 / (count * STREAM_CHUNKS),
            silence_p50_s=got["silence_p50_us"] / 1e6,
            silence_max_s=got["silence_max_us"] / 1e6,
            first_byte_max_s=got["first_byte_max_us"] / 1e6,
        )


def note(text: str) -> None:
    """Progress, apart from the report."""
    print(text, file=sys.stderr, flush=True)


def prepared(options: argparse.Namespace, work: Path) -> dict[str, tuple[Peer, str]]:
    """The routers that are here, with their programs; the others are named and left out."""
    flags = shlex.split(options.ours_flags)
    peers: dict[str, Peer] = {**PEERS, OURS: Ours(options.source.resolve(), flags)}
    if options.before is not None:
        peers[BEFORE] = Ours(options.before.resolve(), flags)
    found = {}
    for name in options.targets:
        if name == DIRECT:
            continue
        try:
            found[name] = (peers[name], peers[name].prepare(work, install=options.install))
        except KeyError:
            note(f"without {name}: it needs --before FOLDER")
        except BenchError as error:
            note(f"without {name}: {error}")
    return found


def compare(bench: Bench, programs: dict[str, tuple[Peer, str]]) -> list[Sample]:
    """All targets under all workloads, interleaved; each repetition begins with another target."""
    options = bench.options
    samples = []
    workloads = [key for key in options.workloads if key != STREAMS]
    if not workloads:
        return []
    names = [name for name in options.targets if name == DIRECT or name in programs]
    with bench.running(names, programs) as targets:
        for repetition in range(options.repetitions):
            turn = repetition % len(targets)
            for key in workloads:
                for target in [*targets[turn:], *targets[:turn]]:
                    sample = bench.sample(target, key, repetition)
                    samples.append(sample)
                    note(
                        f"{repetition + 1}/{options.repetitions} {key:5} {target.name:8} {sample.cpu_us:9.1f} µs/request "
                        f"{sample.per_second:9,.0f}/s  p50 {sample.duration_us:8,.0f} µs  faults {sample.faults}"
                    )
    return samples


def report(bench: Bench, samples: list[Sample], streams: Streams | None, loads: Sequence[str]) -> str:
    """Everything as Markdown."""
    options = bench.options
    command = shlex.join(["python", "bench/router.py", *options.words])
    lines = [
        f"- machine: {describe()}",
        f"- when: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}; load average {loads[0]} before, {loads[1]} after",
        f"- command: `{command}`",
        (
            f"- routers on core {options.router_core}, client and backend on core {options.load_core}; "
            f"medians of {options.repetitions} repetitions, ratios are medians of pairs"
        ),
    ]
    lines += [f"- {name}: `{words}`" for name, words in bench.commands.items()]
    for key in options.workloads:
        rows = figures.cost_rows(samples, key, options.targets)
        if rows:
            lines += ["", f"### {WORKLOADS[key].title}", "", figures.table(figures.COST_HEADER, rows)]
    if streams is not None:
        lines += [
            "",
            f"### {streams.asked:,} open streams in one worker, a chunk every {streams.interval_s:g} s",
            "",
            (
                f"{streams.kb_per_stream:.1f} KB each; {streams.cpu_us_per_chunk:.1f} µs CPU per chunk, opening included; "
                f"{streams.ended:,} ended, {streams.faults} faults; longest wait between two pieces of a stream: half of the "
                f"streams {streams.silence_p50_s:.2f} s, the worst {streams.silence_max_s:.2f} s; "
                f"slowest first byte {streams.first_byte_max_s:.2f} s."
            ),
        ]
    lines += figures.before_lines(samples, options.workloads)
    lines += ["", "### Bounds", "", figures.bound_table(figures.bounds(samples, streams))]
    odd = figures.odd_bodies(samples)
    if odd:
        lines += ["", *(f"- {line}" for line in odd)]
    return "\n".join(lines)


def write_json(path: Path, bench: Bench, samples: list[Sample], streams: Streams | None) -> None:
    """All figures, one sample per run, for other programs."""
    content = {
        "machine": describe(),
        "command": bench.options.words,
        "started": bench.commands,
        "samples": [asdict(sample) for sample in samples],
        "streams": None if streams is None else asdict(streams),
        "bounds": [asdict(bound) for bound in figures.bounds(samples, streams)],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""

    targets, workloads = [DIRECT, *PEERS, BEFORE, OURS], [*WORKLOADS, STREAMS]
    parser = argparse.ArgumentParser(
        prog="bench/router.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--targets", type=names_of(targets), default=[DIRECT, "nginx", "sglang", OURS],
        help=f"who is compared, of: {', '.join(targets)} (default: direct,nginx,sglang,ours)")  # fmt: skip
    add("--workloads", type=names_of(workloads), default=workloads,
        help=f"what is asked, of: {', '.join(workloads)} (default: all)")  # fmt: skip
    add("--repetitions", type=int, default=3, help="turns of all targets under all workloads (default: 3)")
    add("--scale", type=float, default=1.0, help="makes every run this much longer (default: 1)")
    add("--streams", type=int, default=10_000, help="open streams in the run of that name (default: 10000)")
    add("--install", action="store_true",
        help="fetch peers that are missing into the work folder: Debian packages are unpacked there, Python packages "
        "get a virtual environment each; nothing is installed into the system")  # fmt: skip
    add("--work", type=Path, default=Path(tempfile.gettempdir()) / "inference-svc-bench",
        help="folder for programs, peers and logs; may be thrown away (default: %(default)s)")  # fmt: skip
    add(
        "--source",
        type=Path,
        default=ROOT,
        help="folder of the router that is measured as ours (default: this project)",
    )
    add("--before", type=Path, metavar="FOLDER", help="an earlier tree of this project, which is the target `before`")
    add("--ours-flags", default="", metavar="FLAGS", help="further flags of our router, in one word")
    add("--tls", action="store_true",
        help="clients of nginx and ours speak TLS, by a HAProxy on the load's core; `direct` stays plain")  # fmt: skip
    add("--router-core", type=int, default=0, help="core of every router (default: 0)")
    add("--load-core", type=int, default=1, help="core of the client and the backend (default: 1)")
    add("--json", type=Path, metavar="FILE", help="write every single figure there as well")
    options = parser.parse_args(words)
    options.words = words
    return options


def main() -> int:
    """Run the comparison; the exit code says only whether it could be made."""
    options = parse(sys.argv[1:])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that what runs is ended
    load_before = load_average()
    try:
        bench = Bench(options)
        programs = prepared(options, bench.work)
        samples = compare(bench, programs)
        streams = None
        if STREAMS in options.workloads and OURS in programs:
            with bench.running([OURS], programs) as (target,):
                streams = bench.streams(target)
    except BenchError as error:
        note(f"bench/router.py: {error}")
        return 1
    except KeyboardInterrupt:
        note("bench/router.py: interrupted")
        return 130
    print(report(bench, samples, streams, (load_before, load_average())))
    if options.json:
        write_json(options.json, bench, samples, streams)
    return 0


if __name__ == "__main__":
    sys.exit(main())
