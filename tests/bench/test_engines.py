"""What `bench/engines.py` makes of its figures, and what it asks; the engines themselves are in tests/engines."""

import json
import random
from typing import Any

import pytest
from aiohttp import web

from bench.engines import conversations
from bench.engines.replicas import most_possible
from bench.engines.report import COST, DIRECT, OURS, ROUND_ROBIN, Added, Run, bounds, pairs, tables
from bench.router.figures import median_within


def run(target: str, seed: int, mean_s: float, hits: float, case: str = "shared") -> Run:
    return Run(case, target, seed, 100.0, hits, 0.9, [mean_s, mean_s], 1.0, 0, [1, 1], [], 1.0, "0.1")


def possible(*prompts: list[int]) -> float:
    return most_possible([(prompt, prompt) for prompt in prompts], 4)


def test_most_possible_counts_whole_blocks_that_came_before() -> None:
    prompt = list(range(10))
    assert possible(prompt, prompt) == 8 / 20
    assert possible(prompt, [*prompt[:7], 99, *prompt]) == 4 / 28
    assert possible(prompt, prompt[:8]) == 4 / 18, "an engine computes at least one token"
    assert possible(prompt, [*prompt[4:], *prompt[:4]]) == 0.0, "a block counts only after all before it"
    later = [*prompt, 77, 78, 1, 2, 3]
    assert most_possible([(prompt, [*prompt, 77, 78]), (later, later)], 4) == 12 / 25, "the answer is cached, too"


def test_bounds_compare_within_a_seed() -> None:
    runs = [run(ROUND_ROBIN, 1, 1.0, 70), run(COST, 1, 0.4, 87), run(ROUND_ROBIN, 2, 3.0, 70), run(COST, 2, 1.5, 88)]
    runs += [run(ROUND_ROBIN, 1, 1.0, 0, "apart"), run(COST, 1, 1.1, 0, "apart")]
    assert [(bound.measured[:4], bound.holds) for bound in bounds(runs, [])] == [
        ("0.88", True),
        ("0.45", True),
        ("1.10", False),
    ]


def test_overhead_is_taken_from_pairs() -> None:
    times = [(DIRECT, 0, 10.0), (OURS, 0, 10.5), (DIRECT, 1, 30.0), (OURS, 1, 30.7), (DIRECT, 2, 5.0), (OURS, 2, 7.0)]
    added = [Added(way, 1, turn, ttft_ms, 4.0, "0.1") for way, turn, ttft_ms in times]
    assert pairs(added, 1, "ttft_ms") == pytest.approx([0.5, 0.7, 2.0])
    assert [bound.holds for bound in bounds([], added)] == [None, None], "three pairs cannot tell"
    assert "+0.50, +0.70, +2.00" in tables([], added)[0]


@pytest.mark.parametrize(
    ("differences", "within", "holds"),
    [
        ([0.2, 0.1, 0.3, 0.4, 0.5], None, None),
        ([0.2, 0.1, 0.3, 0.4, 0.5, 0.9], (0.1, 0.9), True),
        ([0.2, 0.1, 0.3, 0.4, 0.5, 1.9], (0.1, 1.9), None),
        ([0.2, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 99.0], (0.2, 0.8), True),  # one of nine may be anything: 96 %
        ([1.1, 1.2, 1.3, 1.4, 1.5, 1.6], (1.1, 1.6), False),
    ],
)
def test_overhead_is_judged_by_where_its_median_lies(
    differences: list[float], within: tuple[float, float] | None, *, holds: bool | None
) -> None:
    assert median_within(differences) == within
    times = [(DIRECT, 0.0), *((OURS, added) for added in differences)]
    turns = range(len(differences))
    added = [Added(way, 1, turn, at, at, "0.1") for turn in turns for way, at in (times[0], times[turn + 1])]
    assert [bound.holds for bound in bounds([], added)] == [holds, holds]


@pytest.mark.parametrize("case", conversations.CASES)
def test_the_same_seed_is_the_same_conversations(case: str) -> None:
    make = conversations.CASES[case]
    assert make(3, "a") == make(3, "a") != make(4, "a")
    systems = [turn.system for plan in make(3, "a") for turn in plan if turn.system is not None]
    assert len(set(systems)) == (conversations.PREFIXES if case == "shared" else len(systems))


async def test_conversations_repeat_all_before_and_tell_who_answered(unused_tcp_port: int) -> None:
    """Each answer comes from another replica: every turn but the first of a conversation has moved."""
    asked: list[dict[str, Any]] = []

    async def chat(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        said: list[dict[str, Any]] = [
            {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"delta": {"content": "yes"}}]},
            {"choices": [{"delta": {}, "finish_reason": "stop"}], "system_fingerprint": f"r{random.random()}"},
            {"choices": [], "usage": {"prompt_tokens": 3}},
        ]
        for event in said:
            await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await answer.write(b"data: [DONE]\n\n")
        return answer

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    try:
        turns = [conversations.Turn(system, "why?", 0.0) for system in ("be kind", None, None)]
        seen = await conversations.hold(f"http://127.0.0.1:{unused_tcp_port}", [turns] * 2, 2)
    finally:
        await runner.cleanup()
    assert (len(seen.ttft_s), seen.moved, seen.faults) == (6, 4, [])
    assert seen.asked[-1][-1] == {"role": "assistant", "content": "yes"}
    longest = max(asked, key=lambda body: len(body["messages"]))["messages"]
    assert [message["role"] for message in longest] == ["system", *["user", "assistant"] * 2, "user"]
