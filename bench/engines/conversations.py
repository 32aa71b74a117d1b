"""Conversations of several turns, so many at once, and what their clients see of them."""

import asyncio
import json
import keyword
import random
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.replay.mock import MODEL

CONVERSATIONS, TURNS, PREFIXES, AT_ONCE = 40, 3, 10, 6
PREFIX_WORDS, QUESTION_WORDS = 1800, 90
"""About 2,300 and 115 tokens."""
ANSWER_TOKENS = 12
THINK_S = (0.2, 1.5)
TURN_S = 600.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One question; `system` is None where the conversation goes on."""

    system: str | None
    question: str
    think_s: float


@dataclass(slots=True)
class Seen:
    """What the clients saw; times in seconds."""

    ttft_s: list[float] = field(default_factory=list)
    served: dict[str, int] = field(default_factory=dict)
    moved: int = 0
    """Turns answered by another replica than the turn before."""
    asked: list[list[dict[str, str]]] = field(default_factory=list)
    """Every turn's messages, its answer the last of them, in the order of the answers' ends."""
    faults: list[str] = field(default_factory=list)


def shared(seed: int, salt: str) -> list[list[Turn]]:
    """Each conversation begins with one of a few long system prompts; every turn repeats all before it."""
    rng = random.Random(seed)  # noqa: S311 - seeded
    words = vocabulary()
    systems = [f"{salt} {number}: {_text(rng, words, PREFIX_WORDS)}" for number in range(PREFIXES)]
    plans = []
    for number in range(CONVERSATIONS):
        turns = [_turn(rng, words, None) for _ in range(TURNS)]
        plans.append([Turn(systems[number % PREFIXES], turns[0].question, turns[0].think_s), *turns[1:]])
    rng.shuffle(plans)
    return plans


def apart(seed: int, salt: str) -> list[list[Turn]]:
    """As many questions of the same length, and no two with an equal beginning: no cache can help."""
    rng = random.Random(seed)  # noqa: S311 - seeded
    words = vocabulary()
    return [
        [_turn(rng, words, f"{salt} {number} {turn}: {_text(rng, words, PREFIX_WORDS)}") for turn in range(TURNS)]
        for number in range(CONVERSATIONS)
    ]


CASES = {"shared": shared, "apart": apart}


def vocabulary() -> Sequence[str]:
    """Words of Python's own sources, in order of appearance."""
    source = Path(sysconfig.get_paths()["stdlib"]) / "typing.py"
    return [word for word in source.read_text().split() if word.isidentifier() and not keyword.iskeyword(word)]


def _text(rng: random.Random, words: Sequence[str], count: int) -> str:
    return " ".join(rng.choice(words) for _ in range(count))


def _turn(rng: random.Random, words: Sequence[str], system: str | None) -> Turn:
    return Turn(system, _text(rng, words, QUESTION_WORDS), rng.uniform(*THINK_S))


async def hold(url: str, plans: Sequence[Sequence[Turn]], at_once: int) -> Seen:
    """Have all conversations, `at_once` of them at a time, each turn after its answer and a pause."""
    seen = Seen()
    places = asyncio.Semaphore(at_once)
    limits = aiohttp.ClientTimeout(total=TURN_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limits) as session:

        async def one(turns: Sequence[Turn]) -> None:
            async with places:
                messages: list[dict[str, str]] = []
                before = ""
                for turn in turns:
                    if turn.system is not None:
                        messages = [{"role": "system", "content": turn.system}]
                        before = ""
                    messages.append({"role": "user", "content": turn.question})
                    answer, replica = await _ask(session, url, messages, seen)
                    seen.moved += bool(before) and replica != before
                    before = replica
                    messages.append({"role": "assistant", "content": answer})
                    await asyncio.sleep(turn.think_s)

        await asyncio.gather(*(one(turns) for turns in plans))
    return seen


async def _ask(session: aiohttp.ClientSession, url: str, messages: list[dict[str, str]], seen: Seen) -> tuple[str, str]:
    """The answer's text and who gave it; the time to its first token is noted."""
    body = {
        "model": MODEL,
        "messages": messages,
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    loop = asyncio.get_running_loop()
    began = loop.time()
    first_s: float | None = None
    text, replica = "", ""
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            seen.faults.append(f"{answer.status} {(await answer.text())[:200]}")
            return "", ""
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            replica = event.get("system_fingerprint") or replica
            for choice in event.get("choices", ()):
                delta = choice["delta"]
                if not delta.get("role") and first_s is None:
                    first_s = loop.time() - began
                text += delta.get("content") or ""
    if first_s is None or not replica:
        seen.faults.append(f"no token, or nobody's: {text[:100]!r} by {replica!r}")
        return text, replica
    seen.asked.append([*messages, {"role": "assistant", "content": text}])
    seen.ttft_s.append(first_s)
    seen.served[replica] = seen.served.get(replica, 0) + 1
    return text, replica
