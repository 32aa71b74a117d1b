"""Who is served how much, and how soon, where keys share two replicas that have not room for all of them.

    python bench/fair.py [--seconds 60] [--crowd 3200]

Starts everything itself on loopback: two mock servers with room for 32 requests each, a router with keys, clients.

quiet: one key asks every half second, alone, and then beside a key that always has `--crowd` requests under way, a hundred times
its part. What counts is the 95th percentile of the quiet one's first byte.
equal: two keys always have 96 requests under way; the prompts of one are ten times longer. What counts is what each had by the
usage of its answers: a token of a prompt 1, of an answer 2.
"""

import argparse
import asyncio
import hashlib
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # a script's own folder comes first otherwise, and holds a `router` that is not the router

from bench.replay.figures import quantile  # noqa: E402 - see above
from bench.router.machine import load_average  # noqa: E402
from bench.streams import Fleet, fleet  # noqa: E402

KEYS = ("quiet", "loud", "short", "long")
MOCK = ("--ttft-s", "0.4", "--token-delay-s", "0.015")
ROOM = 32


class Key:
    """One client, and what it saw."""

    def __init__(self, made: Fleet, name: str, *, words: int, tokens: int, spread: int = 0) -> None:
        self._made = made
        self._headers = {"Authorization": f"Bearer {name}"}
        self._body: dict[str, Any] = {
            "model": "m",
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": "word " * words}],
        }
        self._tokens, self._spread, self._rng = tokens, spread, random.Random(1)  # noqa: S311 - no secret
        self.first_s: list[float] = []
        self.until = float("inf")
        self.cost = 0
        """Of what was answered until then: whoever waits at the end is served whatever it had."""

    async def ask(self) -> None:
        """One request; answers of one length would all end together for ever, once they did."""
        tokens = self._tokens + self._rng.randint(-self._spread, self._spread)
        seen = await self._made.stream({**self._body, "max_tokens": tokens}, self._headers)
        usage = seen.events[-1].get("usage") if seen.events else None
        if usage is None:
            sys.exit(f"a request was not answered whole: {seen.said[-300:]!r}")
        self.first_s.append(seen.ttft_s)
        if time.monotonic() < self.until:
            self.cost += usage["prompt_tokens"] + 2 * usage["completion_tokens"]

    async def always(self, until: float) -> None:
        """One after the other."""
        while time.monotonic() < until:
            await self.ask()

    async def each(self, seconds: float, until: float) -> None:
        """Each so many seconds, however long they take."""
        async with asyncio.TaskGroup() as asked:
            while time.monotonic() < until:
                asked.create_task(self.ask())
                await asyncio.sleep(seconds)


async def quiet(made: Fleet, seconds: float, crowd: int) -> str:
    """The first case."""
    alone = Key(made, "quiet", words=100, tokens=20)
    await alone.each(0.5, time.monotonic() + seconds / 2)
    beside, loud = Key(made, "quiet", words=100, tokens=20), Key(made, "loud", words=100, tokens=20, spread=12)
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as clients:
        for number in range(crowd):
            clients.create_task(loud.always(until))
            if number < 2 * ROOM:
                await asyncio.sleep(0.01)  # else all of the first come to an end at once
        clients.create_task(beside.each(0.5, until))
    before, after = (quantile(sorted(one.first_s), 0.95) for one in (alone, beside))
    waited = quantile(sorted(loud.first_s), 0.5)
    return (
        f"quiet: first byte p95 {before * 1e3:.0f} ms alone, {after * 1e3:.0f} ms beside {crowd} of another key ({after / before:.2f}),"
        f" whose own median is {waited:.1f} s"
    )


async def equal(made: Fleet, seconds: float) -> str:
    """The second case."""
    keys = [Key(made, "short", words=100, tokens=20), Key(made, "long", words=1000, tokens=20)]
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as clients:
        for key in keys:
            key.until = until
            for _ in range(3 * ROOM):
                clients.create_task(key.always(until))
    short, long = keys
    counts = f"{len(short.first_s)} and {len(long.first_s)} requests"
    return f"equal: tokens by cost {short.cost} and {long.cost} ({long.cost / short.cost:.3f}), {counts}"


def keys_file(folder: Path) -> Path:
    """Of all keys, each of which is its name."""
    lines = (f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n' for name in KEYS)
    path = folder / "keys.toml"
    path.touch(mode=0o600)
    path.write_text("".join(lines))
    return path


async def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each case (default: 60)")
    parser.add_argument("--crowd", type=int, default=3200, help="requests of the loud key under way (default: 3200)")
    options = parser.parse_args()
    print(f"load {load_average()}")
    with tempfile.TemporaryDirectory() as folder:
        settings = f'api_keys_file = "{keys_file(Path(folder))}"\nqueue_limit = 5000\nqueue_timeout_s = 300\nworkers = 1\nmax_connections = 8000\npolicy = "least_loaded"\n'
        async with fleet([MOCK, MOCK], model="", settings=settings, limit=ROOM, key=KEYS[0]) as made:
            print(await quiet(made, options.seconds, options.crowd), flush=True)
            print(await equal(made, options.seconds), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
