"""What clients see when a replica is lost under their streams, and what second copies do for the first byte.

    python bench/streams.py rescue [--streams 200] [--how kill,stop,reset,vanish] [--ttft 0.2] [--workers 1]
    python bench/streams.py hedge [--clients 16] [--seconds 15] [--pairs 2] [--slow 10] [--policy NAME]

Starts everything itself on loopback: mock servers with seeded text, a router with `rescue` and `hedge`, clients.

rescue: two mocks, so many streams at once, and one mock is killed (-9) or stopped after a third of all words, resets each of its streams after half of them,
or vanishes without FIN or RST. A stream is whole when its bytes are those of an undisturbed one but for the comment; its gap is
counted from the last event before the comment to the first one after it.
hedge: four mocks, one of them slower by the factor `--slow` (1: none), with and without `hedge` in turn, under the default policy or `--policy`.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # a script's own folder comes first otherwise, and holds a `router` that is not the router

import aiohttp  # noqa: E402 - see above

from babysitter.mock.answers import Generation, seeded_words, text_before  # noqa: E402
from bench.replay.figures import quantile  # noqa: E402
from bench.router.machine import BenchError, free_port, load_average  # noqa: E402

IDLE_S = 1.0
"""The router's limit for a silent stream: what `stop` and `vanish` wait before anything else."""
SHOWN = ("svc_router_rescues", "svc_router_rescues_failed", "svc_router_hand_overs", "svc_router_hedges")


@dataclass
class Seen:
    """What one client got."""

    said: bytes = b""
    notes: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    ttft_s: float = 0.0
    gap_s: float = 0.0

    def is_whole(self, body: dict[str, Any]) -> bool:
        """Whether these are the bytes of an undisturbed stream, by the names that its first event has."""
        if not self.events:
            return False
        first, before = self.events[0], text_before(body, chat=True)
        words, ended = seeded_words(before, body.get("max_tokens"))
        reason, prompt_tokens = "stop" if ended else "length", len(before.split())
        told = Generation(
            first["id"], first["created"], "m", first["system_fingerprint"], words, reason, prompt_tokens, chat=True
        )
        lines = [json.dumps(event, separators=(",", ":")) for event in told.chunks(usage=True)]
        return self.said == "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()


@dataclass
class Fleet:
    """A router and the mocks behind it."""

    url: str
    mocks: list[asyncio.subprocess.Process]
    ports: list[int]
    http: aiohttp.ClientSession
    events: int = 0
    """That came, of all streams."""

    async def metrics(self) -> dict[str, float]:
        """By name, over all replicas."""
        async with self.http.get(f"{self.url}/metrics") as answer:
            lines = [line.split() for line in (await answer.text()).splitlines() if line[:1] != "#"]
        sums: dict[str, float] = {}
        for name, value in lines:
            plain = name.partition("{")[0].removesuffix("_total")
            sums[plain] = sums.get(plain, 0.0) + float(value)
        return sums

    async def in_flight(self) -> int:
        async with self.http.get(f"{self.url}/services") as answer:
            return sum(one["in_flight"] for one in (await answer.json())["services"])

    async def stream(self, body: dict[str, Any], headers: dict[str, str] | None = None) -> Seen:
        """One streamed chat."""
        seen, began, latest, noted = Seen(), time.monotonic(), 0.0, False
        try:
            async with self.http.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as answer:
                async for line in answer.content:
                    now = time.monotonic()
                    if line.startswith(b":"):
                        seen.notes.append(line.decode().strip())
                        noted = True
                        continue
                    seen.said += line
                    if not line.startswith(b"data:"):
                        continue
                    if noted:
                        seen.gap_s, noted = now - latest, False
                    seen.ttft_s, latest = seen.ttft_s or now - began, now
                    self.events += 1
                    if line[6:7] == b"{":
                        seen.events.append(json.loads(line[6:]))
        except aiohttp.ClientError:
            seen.said += b"<unclean>"
        return seen


@asynccontextmanager
async def fleet(
    mocks: Sequence[Sequence[str]], *, model: str, settings: str = "", limit: int = 0, key: str = ""
) -> AsyncIterator[Fleet]:
    """One mock for each list of flags, and a router whose table `[models.m]` is `model`; `key` is what it asks for, if any."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        async def start(module: str, *flags: str) -> asyncio.subprocess.Process:
            with (folder / f"{module}{flags[1]}.log").open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", module, *flags, cwd=ROOT, stdout=log, stderr=log
                )
            stack.push_async_callback(_end, process)
            return process

        ports = [free_port() for _ in mocks]
        processes = [
            await start("babysitter.mock", "--port", str(port), "--model", "m", "--seeded", *flags)
            for port, flags in zip(ports, mocks, strict=True)
        ]
        more = {"max_concurrency": limit} if limit else {}
        services = [
            {
                "name": f"s{n}",
                "host": "127.0.0.1",
                "port": port,
                "metadata": {"models": ["m"], "continues": ["chat"], **more},
            }
            for n, port in enumerate(ports)
        ]
        (folder / "services.json").write_text(json.dumps(services))
        (folder / "router.toml").write_text(f"{settings}\n[models.m]\n{model}\n")
        http = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(120))
        )
        for port in ports:
            await _until_answers(http, f"http://127.0.0.1:{port}/health")
        port = free_port()
        flags = ("--router-port", str(port), "--config", str(folder / "router.toml"), "--data-dir", str(folder))
        await start("router", *flags, "--static-services", str(folder / "services.json"))
        made = Fleet(f"http://127.0.0.1:{port}", processes, ports, http)
        await _until_answers(http, f"{made.url}/v1/models", '"m"', key)
        yield made


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _until_answers(http: aiohttp.ClientSession, url: str, text: str = "", key: str = "") -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                async with http.get(url, headers={"Authorization": f"Bearer {key}"} if key else None) as answer:
                    if answer.status == 200 and text in await answer.text():
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


# -- rescue -----------------------------------------------------------------------------------------------------------

TOKENS = 60


@dataclass
class Rescued:
    """One loss."""

    seen: list[Seen]
    whole: int
    metrics: dict[str, float]
    in_flight: int

    @property
    def gaps_s(self) -> list[float]:
        return sorted(one.gap_s for one in self.seen if one.notes)


async def rescue(how: str, streams: int, *, ttft_s: float = 0.2, token_s: float = 0.05, workers: int = 1) -> Rescued:
    """Lose one of two replicas under `streams`."""
    flags = ["--ttft-s", str(ttft_s), "--token-delay-s", str(token_s)]
    lost = {"reset": ["--reset-after-chunks", str(TOKENS // 2)], "vanish": ["--vanish-after-chunks", str(TOKENS // 2)]}
    settings = f"idle_timeout_s = {IDLE_S}\nworkers = {workers}\n"
    async with fleet([[*flags, *lost.get(how, [])], flags], model="rescue = true", settings=settings) as made:
        bodies = [
            {
                "model": "m",
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": TOKENS,
                "messages": [{"role": "user", "content": f"request {number}"}],
            }
            for number in range(streams)
        ]
        tasks = [asyncio.ensure_future(made.stream(body)) for body in bodies]
        if how in ("kill", "stop"):
            while made.events < streams * TOKENS / 3:  # noqa: ASYNC110 - each stream counts
                await asyncio.sleep(0.01)
            made.mocks[0].send_signal(signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        seen = await asyncio.gather(*tasks)
        whole = sum(one.is_whole(body) for one, body in zip(seen, bodies, strict=True))
        deadline = time.monotonic() + 10
        while (left := await made.in_flight()) and time.monotonic() < deadline:  # noqa: ASYNC110 - it is told to nobody
            await asyncio.sleep(0.05)
        return Rescued(seen, whole, await made.metrics(), left)


def show_rescue(how: str, found: Rescued, ttft_s: float) -> None:
    gaps, ttfts = found.gaps_s or [0.0], sorted(one.ttft_s for one in found.seen)
    waited = IDLE_S if how in ("stop", "vanish") else 0.0
    print(
        f"{how:7} {len(found.seen)} streams, {found.whole} whole, {len(found.gaps_s)} continued; TTFT p50 "
        f"{quantile(ttfts, 0.5) * 1e3:.0f} p99 {quantile(ttfts, 0.99) * 1e3:.0f} ms (mock's own {ttft_s * 1e3:.0f}); gap less "
        f"idle limit p50 {(quantile(gaps, 0.5) - waited) * 1e3:.0f} p99 {(quantile(gaps, 0.99) - waited) * 1e3:.0f} max "
        f"{(gaps[-1] - waited) * 1e3:.0f} ms; in flight after {found.in_flight}; "
        + ", ".join(f"{name[11:]} {found.metrics.get(name, 0):.0f}" for name in SHOWN)
    )
    for one in [one for one in found.seen if b"<unclean>" in one.said][:2]:
        print("   ", one.notes, one.said[-200:])


# -- hedging ----------------------------------------------------------------------------------------------------------


async def load(made: Fleet, clients: int, seconds: float, seed: int) -> list[float]:
    """Times to the first byte of the streams of so many clients, each of which asks anew when it has its answer."""
    ends, ttfts = time.monotonic() + seconds, []

    async def client(number: int) -> None:
        chance = random.Random(seed * 1000 + number)  # noqa: S311 - the same requests in each run
        while time.monotonic() < ends:
            said = f"request {chance.random()} " + "word " * chance.choice((100, 200, 400))
            body = {"model": "m", "stream": True, "max_tokens": 8, "messages": [{"role": "user", "content": said}]}
            seen = await made.stream(body)
            if b"[DONE]" not in seen.said:
                raise BenchError(f"a request failed: {seen.said[-200:]!r}")
            ttfts.append(seen.ttft_s)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return ttfts


async def hedge(
    slow: float, clients: int, seconds: float, pairs: int, policy: str
) -> tuple[list[float], list[float], float]:
    """TTFTs without and with second copies, in turn; and the share of requests that had one."""
    flags = [["--ttft-s", str(0.2 * factor), "--token-delay-s", str(0.04 * factor)] for factor in (slow, 1.0, 1.0, 1.0)]
    found: dict[bool, list[float]] = {False: [], True: []}
    copies = 0.0
    for pair in range(pairs):
        for on in (False, True) if pair % 2 else (True, False):
            model = f'hedge = {str(on).lower()}\npolicy = "{policy}"'
            async with fleet(flags, model=model, settings="workers = 1", limit=64) as made:
                await load(made, clients, 15.0, seed=pair)  # it learns
                before = (await made.metrics()).get("svc_router_hedges", 0.0)
                found[on] += await load(made, clients, seconds, seed=100 + pair)
                copies += (await made.metrics())["svc_router_hedges"] - before
    return sorted(found[False]), sorted(found[True]), copies / max(1, len(found[True]))


def show_hedge(slow: float, found: tuple[list[float], list[float], float]) -> None:
    without, having, share = found
    print(f"one of four {slow:g} times slower: {len(without)} and {len(having)} requests, copies {share:.1%}")
    for at in (0.5, 0.9, 0.95, 0.99):
        off, on = quantile(without, at), quantile(having, at)
        print(f"   TTFT p{at * 100:g}: {off * 1e3:6.0f} ms without, {on * 1e3:6.0f} ms with, {on / off - 1:+.0%}")


def main(argv: Sequence[str]) -> int:
    """Console entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    lose = what.add_parser("rescue")
    lose.add_argument("--streams", type=int, default=200)
    lose.add_argument("--how", type=lambda text: text.split(","), default=["kill", "stop", "reset", "vanish"])
    lose.add_argument("--ttft", type=float, default=0.2)
    lose.add_argument("--workers", type=int, default=1)
    copy = what.add_parser("hedge")
    copy.add_argument("--slow", type=float, default=10.0)
    copy.add_argument("--clients", type=int, default=16)
    copy.add_argument("--seconds", type=float, default=15.0)
    copy.add_argument("--pairs", type=int, default=2)
    copy.add_argument("--policy", default="cost")
    options = parser.parse_args(argv)
    print(load_average())
    if options.what == "hedge":
        found = asyncio.run(hedge(options.slow, options.clients, options.seconds, options.pairs, options.policy))
        show_hedge(options.slow, found)
        return 0
    for how in options.how:
        lost = asyncio.run(rescue(how, options.streams, ttft_s=options.ttft, workers=options.workers))
        show_rescue(how, lost, options.ttft)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
