"""Every figure of this project with its bounds, from one command: runs the programs of this folder one after the other.

    python -m bench [--quick|--full] [--only router,start] [--before FILE.json] [--json FILE] [--report FILE]

Prints a Markdown report: the bounds first, then what each program said. One that fails is told of, and the others go on; the exit
code is 1 then. A bound that is missed changes nothing of it: figures of a busy machine are no verdict. `--quick` (default) takes
some minutes and shows whether all runs; the figures of docs are those of `--full`, on a machine with nothing else to do.
"""

import argparse
import json
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.flags import names_of
from bench.router.figures import Bound, table
from bench.router.machine import describe, load_average

ROOT = Path(__file__).resolve().parents[1]
COST_US = 2.0
"""Most that keys, limits, accounts and TLS may add to a request of W1, each."""
WORDS = {True: "holds", False: "MISSED", None: "not measured"}
LINE = re.compile(r"(?P<what>\S.*?) {2,}(?P<measured>\S.*?) {3,}(?P<limit>\S.*?) {2,}(?P<word>holds|MISSED)\s*$")


def none(_written: Any, _said: str) -> list[Bound]:
    """Of a program that has no bounds."""
    return []


@dataclass(frozen=True, slots=True)
class Part:
    """One program. `bounds` reads what it wrote as JSON (None: it writes none) and printed."""

    script: str
    quick: str
    full: str
    bounds: Callable[[Any, str], list[Bound]] = none
    writes_json: bool = True
    limit_s: float = 3600.0


@dataclass(slots=True)
class Outcome:
    """What came of one program; `fault` is empty where it ran to its end."""

    command: str
    said: str = ""
    fault: str = ""
    took_s: float = 0.0
    bounds: list[Bound] = field(default_factory=list)
    written: Any = None


def own_bounds(written: Any, _said: str) -> list[Bound]:
    """Those that the program judged itself."""
    return [Bound(**one) for one in written["bounds"]]


def line_bounds(_written: Any, said: str) -> list[Bound]:
    """Those in lines that end with `holds` or `MISSED`."""
    found = filter(None, map(LINE.search, said.splitlines()))
    return [Bound(one["what"], one["limit"], one["measured"], one["word"] == "holds") for one in found]


def costs(written: Any, _said: str) -> list[Bound]:
    """What each thing adds to a request of W1, without sockets: the ratio of the pairs, of what a request costs without it."""
    made = []
    for one in written:
        if one["workload"] == "w1":
            added, low, high = ((one[name] - 1) * one["before_us"] for name in ("ratio", "ratio_low", "ratio_high"))
            measured = f"{added:.2f} ({low:.2f}-{high:.2f}, n={one['pairs']})"
            made.append(Bound(f"W1: {one['what']} adds, µs", f"≤ {COST_US:g}", measured, added <= COST_US))
    return made


PARTS: Mapping[str, Part] = {
    "router": Part(
        "router.py",
        "--targets direct,nginx,ours --workloads w1,w1c1,w2 --repetitions 1 --scale 0.5",
        "--repetitions 5",
        own_bounds,
    ),
    "tls": Part(
        "router.py",
        "--tls --targets direct,nginx,ours --workloads w1 --repetitions 1 --scale 0.5",
        "--tls --targets direct,nginx,ours --workloads w1,w2,w3 --repetitions 5",
    ),
    "plane": Part("plane.py", "--costs --rounds 10", "--costs --rounds 100", costs),
    "registry": Part(
        "registry.py", "--instances 2000 --rounds 2 --seconds 3", "", line_bounds, writes_json=False
    ),
    "start": Part("start.py", "--repetitions 1", "--repetitions 5", own_bounds),
    "fair": Part("fair.py", "--seconds 10 --crowd 400", "", writes_json=False),
    "replay": Part("replay.py", "--offline --seeds 1 --cases base --until 300", "--offline --cases all"),
}  # fmt: skip
"""In the order in which they run, with what they are told."""


def run(name: str, words: Sequence[str], folder: Path) -> Outcome:
    """Run one program to its end, and read it."""
    part, written = PARTS[name], folder / f"{name}.json"
    told = [*words, *(["--json", str(written)] if part.writes_json else [])]
    outcome = Outcome(shlex.join(["python", f"bench/{part.script}", *words]))
    began = time.monotonic()
    command = [sys.executable, str(ROOT / "bench" / part.script), *told]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            outcome.said, errors = process.communicate(timeout=part.limit_s)
        except BaseException as error:
            process.send_signal(signal.SIGTERM)  # each ends what it has started
            outcome.said, errors = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            errors += f"not done within {part.limit_s:g} s"
    outcome.took_s = time.monotonic() - began
    if process.returncode:
        last = (errors.strip() or outcome.said.strip()).splitlines()[-1:] or ["it says nothing"]
        outcome.fault = f"ended with {process.returncode}: {last[0]}"
        return outcome
    outcome.written = json.loads(written.read_text()) if part.writes_json else None
    outcome.bounds = part.bounds(outcome.written, outcome.said)
    return outcome


def tls_cost(outcomes: Mapping[str, Outcome]) -> list[Bound]:
    """What TLS adds to a request of W1: two runs, each by what `direct`, which has no TLS, cost beside it."""
    what, limit = "W1: TLS adds, µs", f"≤ {COST_US:g}"
    shares: list[float] = []
    direct: list[float] = []
    for name in ("router", "tls"):
        written = outcomes[name].written if name in outcomes else None
        cpu: dict[str, list[float]] = {"ours": [], "direct": []}
        for one in written["samples"] if written else ():
            if one["workload"] == "w1" and one["target"] in cpu:
                cpu[one["target"]].append(one["cpu_us"])
        if not all(cpu.values()):
            return [Bound(what, limit, "-", None)]
        shares.append(statistics.median(cpu["ours"]) / statistics.median(cpu["direct"]))
        direct.append(statistics.median(cpu["direct"]))
    added = (shares[1] - shares[0]) * direct[0]
    return [Bound(what, limit, f"{added:.1f} (two runs)", added <= COST_US)]


def rows_of(outcomes: Mapping[str, Outcome]) -> list[tuple[str, Bound]]:
    """Every bound with its part; a program that did not run has one line."""
    rows: list[tuple[str, Bound]] = []
    for name, part in PARTS.items():
        if name in outcomes and not outcomes[name].fault:
            rows += [(name, one) for one in outcomes[name].bounds]
        elif part.bounds is not none:
            rows.append((name, Bound("all", "", outcomes[name].fault if name in outcomes else "-", None)))
    return rows + [("tls", one) for one in tls_cost(outcomes)]


def bounds_table(rows: Sequence[tuple[str, Bound]], before: Mapping[str, str] | None) -> str:
    """The bounds, with those of an earlier report beside them."""
    columns = ("", "bound", "limit", "measured (lowest-highest, n)", *(("before",) if before is not None else ()), "")
    lines = []
    for name, one in rows:
        earlier = () if before is None else (before.get(f"{name}: {one.what}", "-"),)
        lines.append((name, one.what, one.limit, one.measured, *earlier, WORDS[one.holds]))
    return table(columns, lines)


def report(head: Sequence[str], rows: Sequence[tuple[str, Bound]], outcomes: Mapping[str, Outcome], before: Any) -> str:
    """All of it in Markdown."""
    earlier = (
        None
        if before is None
        else {one["name"]: f"{one['measured']} {WORDS[one['holds']]}" for one in before["bounds"]}
    )
    parts = ["# Figures", "\n".join(f"- {line}" for line in head), "## Bounds", bounds_table(rows, earlier)]
    for name, one in outcomes.items():
        parts += [f"## {name}", f"`{one.command}`, {one.took_s:.0f} s", f"**{one.fault}**" if one.fault else ""]
        said = one.said.strip()  # some print Markdown, some lines
        parts.append(said if "|" in said else f"```\n{said}\n```" if said else "")
    return "\n\n".join(filter(None, parts)) + "\n"


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="minutes (default)")
    length.add_argument("--full", action="store_true", help="an hour")
    parser.add_argument("--only", type=names_of(list(PARTS)), default=list(PARTS), help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--trace", type=Path, help="the recorded trace that replay wants; without it that is left out")
    parser.add_argument("--install", action="store_true", help="fetch the router's peers that are missing")
    parser.add_argument("--before", type=Path, metavar="FILE.json", help="an earlier report, to stand beside this one")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report there, too")
    return parser.parse_args(words)


def words_of(name: str, options: argparse.Namespace) -> list[str]:
    """What a program is told."""
    part = PARTS[name]
    words = shlex.split(part.full if options.full else part.quick)
    if name == "replay":
        words = ["--trace", str(options.trace), *words]
    return [*words, *(["--install"] if options.install and part.script == "router.py" else [])]


def main() -> int:
    """Run, and report."""
    options = parse(sys.argv[1:])
    before = json.loads(options.before.read_text()) if options.before else None
    load_before, began = load_average(), time.gmtime()
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in options.only:
            if name == "replay" and options.trace is None:
                outcomes[name] = Outcome("python bench/replay.py", fault="not run: it wants --trace FILE")
                continue
            print(f"{name} ...", file=sys.stderr, flush=True)
            outcomes[name] = run(name, words_of(name, options), Path(folder))
            print(
                f"{name}: {outcomes[name].fault or 'done'}, {outcomes[name].took_s:.0f} s", file=sys.stderr, flush=True
            )
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    head = [
        f"machine: {describe()}",
        f"when: {time.strftime('%Y-%m-%d %H:%M', began)} UTC; load average {load_before} before, {load_average()} after",
        f"commit: {git.stdout.strip() or 'unknown'}",
        f"command: `{shlex.join(['python', '-m', 'bench', *sys.argv[1:]])}`",
    ]
    rows = rows_of(outcomes)
    text = report(head, rows, outcomes, before)
    print(text)
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    if options.json:
        bounds = [{"name": f"{name}: {one.what}", **asdict(one)} for name, one in rows]
        parts = {name: asdict(one) for name, one in outcomes.items()}
        options.json.write_text(json.dumps({"head": head, "bounds": bounds, "parts": parts}, indent=1) + "\n")
    return int(any(one.fault for one in outcomes.values() if not one.fault.startswith("not run")))


if __name__ == "__main__":
    sys.exit(main())
