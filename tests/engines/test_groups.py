"""llama.cpp over two nodes by its RPC: a group of real programs, of which each is killed once."""

import asyncio
import os
import signal
import time
from pathlib import Path

import openai
import pytest

from tests.e2e.fleet import Fleet, fleet_in, tell
from tests.engines import llama_cpp, llama_cpp_rpc

pytestmark = [pytest.mark.engines, pytest.mark.timeout(2400)]
MODEL = "large"
OUT_WITHIN_S = 2.0


async def said(client: openai.AsyncOpenAI) -> str:
    answer = await client.completions.create(model=MODEL, prompt="a", max_tokens=8, temperature=0)
    return answer.choices[0].text


def pids(fleet: Fleet, program: str) -> list[int]:
    """The processes of that program, without their shims."""
    return [pid for pid, line in fleet.orphans().items() if Path(line.split(" ")[0]).name == program]


async def served(fleet: Fleet) -> bool:
    """Some router sends requests to it."""
    _, answer = await fleet.call("GET", "/services")
    return any(one["name"].endswith("-server") and one["is_healthy"] for one in answer["services"])


async def test_llama_cpp_runs_over_two_nodes_and_starts_again_whichever_member_dies(tmp_path: Path) -> None:
    path = f"{llama_cpp_rpc.programs()}:{os.environ['PATH']}"
    async with fleet_in(tmp_path) as fleet:
        fleet.add_registry()
        for node in ("n1", "n2"):
            fleet.add_agent(node, env={"PATH": path})
        fleet.add_router("router", "--workers", "1")
        parameters = {"model": str(llama_cpp.model()), "ctx_size": 512}
        await fleet.apply("d", template="llama-cpp-rpc", model=MODEL, parameters=parameters, dwell_s=0)
        await fleet.reached("d", "ready", 1)
        await fleet.listed(MODEL, "ready")
        async with openai.AsyncOpenAI(base_url=f"{fleet.router}/v1", api_key="none", max_retries=5) as client:
            text = await said(client)
            assert text
            [told] = [
                one
                for node in ("n1", "n2")
                for one in fleet.root(node).glob("*/*_stdout.log")
                if b"RPC" in one.read_bytes()
            ]
            opened, closed = (told.read_text().count(words) for words in ("Accepted client", "connection closed"))
            assert opened > closed, "the leader's model is at the follower"
            for program in llama_cpp_rpc.PROGRAMS:
                [victim] = pids(fleet, program)
                before = {*pids(fleet, "ggml-rpc-server"), *pids(fleet, "llama-server")}
                killed = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                while await served(fleet):
                    await asyncio.sleep(0.05)
                out_s = time.monotonic() - killed
                await fleet.until("a new group is ready", lambda: served(fleet))
                tell(
                    victim=program,
                    out_s=round(out_s, 2),
                    again_s=round(time.monotonic() - killed, 1),
                    load=os.getloadavg(),
                )
                assert out_s <= OUT_WITHIN_S
                await fleet.reached("d", "ready", 1)
                assert not before & {*pids(fleet, "ggml-rpc-server"), *pids(fleet, "llama-server")}
                assert await said(client) == text
        await fleet.call("DELETE", "/api/v1/deployments/d")

        async def nothing_left() -> bool:
            return not fleet.orphans()

        await fleet.until("nothing is left", nothing_left)
