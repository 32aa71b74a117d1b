"""Tables of `bench/fleet.py`, as docs/scale.md has them, and the price of a heartbeat."""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.fleet.parts import etcd_command
from bench.registry import BARE, free_port, paired_heartbeats, probes_done, process, registry_command
from bench.registry_load import connect, flood, registration, request

SLOWEST_CHANGE_MS = 250.0
MOST_TIMES_BARE = 1.3


def _mean(row: Mapping[str, Any], what: str, part: str) -> float:
    return statistics.mean(value for key, value in row[what].items() if key.startswith(part))


def _both(figures: Mapping[str, float]) -> str:
    return f"{figures['p50']:.0f} / {figures['p99']:.0f}" if figures else "-"


def _rolled(row: Mapping[str, Any]) -> str:
    """How long the rollout took, or how many it got to in the time that it had."""
    if "roll_s" not in row:
        return "-"
    return f"{row['roll_s']:.1f}" + (
        f" ({row['stood']} of {row['deployed']})" if row["stood"] < row["deployed"] else ""
    )


def lines_of(rows: Sequence[Mapping[str, Any]], price: Mapping[str, float] | None) -> Iterator[str]:
    """The tables."""
    yield "\n| replicas | | CPU registry (each) | etcd | router (each) | all, of 2 cores | heartbeat, ms | change to all 14 watches, ms | read of etcd, ms | request by router, ms (not 200) |"
    yield "| --: | -- | --: | --: | --: | --: | --: | --: | --: | --: |"
    for row in rows:
        beats = {"p50": row["beats"].get("p50_ms", 0.0), "p99": row["beats"].get("p99_ms", 0.0)}
        yield (
            f"| {row['size']:,} | {row['phase']} | {_mean(row, 'cpu', 'registry'):.1%} | {row['cpu']['etcd']:.1%} | "
            f"{_mean(row, 'cpu', 'router'):.1%} | {row['machine']:.2f} | {_both(beats)} | {_both(row['change_ms'])}"
            f"{' (' + str(row['missed']) + ' missed)' if row['missed'] else ''} | {_both(row['etcd_ms'])} | "
            f"{_both(row['router_ms'])} ({row['faults']} of {row['requests']}) |"
        )
    yield "\n| replicas | MB registry (each) | etcd | router (each) | all known, s | deployment of a tenth, s | its rollout, s | rack: unused by routers, s | its leases ended, s | removed, s | load |"
    yield "| --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |"
    by_phase = {row["phase"]: row for row in rows}
    for steady in (row for row in rows if row["phase"] == "steady"):
        after = {row["phase"]: row for row in rows[rows.index(steady) :][:4]}
        rolling, rack = after.get("rolling", {}), after.get("rack", {})

        def told(row: Mapping[str, Any], name: str) -> str:
            return f"{row[name]:.1f}" if name in row else "-"

        yield (
            f"| {steady['size']:,} | {_mean(steady, 'mb', 'registry'):.0f} | {steady['mb']['etcd']:.0f} | "
            f"{_mean(steady, 'mb', 'router'):.0f} | {told(steady, 'all_known_s')} | {told(rolling, 'deploy_s')} | "
            f"{_rolled(rolling)} | {told(rack, 'unused_s')} | {told(rack, 'noticed_s')} | {told(rack, 'removed_s')} | {steady['load']} |"
        )
    if by_phase:
        worst = max((row["change_ms"].get("p99", 0.0), row["size"], row["phase"]) for row in rows)
        holds = "holds" if worst[0] <= SLOWEST_CHANGE_MS else "MISSED"
        yield f"\nchange to every watch, p99, the worst: {worst[0]:.0f} ms ({worst[1]:,}, {worst[2]}); <= {SLOWEST_CHANGE_MS:.0f} ms: {holds}"
    if price:
        holds = "holds" if price["ratio"] <= MOST_TIMES_BARE else "MISSED"
        yield (
            f"heartbeat at {price['records']:,.0f} records over etcd: {price['registry_us']:.0f} us of CPU, bare aiohttp handler "
            f"{price['bare_us']:.0f} us: {price['ratio']:.2f} ({price['low']:.2f}-{price['high']:.2f}); <= {MOST_TIMES_BARE}: {holds}"
        )


async def price_of_heartbeats(count: int, rounds: int) -> dict[str, float]:
    """CPU of a heartbeat at a registry of so many records over etcd, beside a bare handler's; in pairs, as bench/registry.py."""
    with TemporaryDirectory(prefix="fleet-price-") as place, ExitStack() as stack:
        folder = Path(place)
        bare_port, port, client, peer = (free_port() for _ in range(4))
        bare_url = f"http://127.0.0.1:{bare_port}/"
        bare = stack.enter_context(process([sys.executable, "-c", BARE, str(bare_port)], folder, bare_url))
        command = etcd_command(folder, client, peer)
        stack.enter_context(process(command, folder, f"http://127.0.0.1:{client}/health"))
        store = ("--store", f"etcd://127.0.0.1:{client}", "--health-interval", "3600", "--max-services", "100000")
        url = f"http://127.0.0.1:{port}/health"
        registry = stack.enter_context(process(registry_command(port, *store), folder, url))
        await flood(
            await connect(port), [request("POST", "/services", registration(it, bare_port)) for it in range(count)]
        )
        await probes_done(port, count)
        base, ours, ratios = await paired_heartbeats((bare.pid, bare_port), (registry.pid, port), count, rounds)
    quarter = len(ratios) // 4
    return {
        "records": count,
        "bare_us": base,
        "registry_us": ours,
        "ratio": statistics.median(ratios),
        "low": ratios[quarter],
        "high": ratios[-quarter - 1],
    }
