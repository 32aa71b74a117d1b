"""A real engine as a deployment: cold, woken by the official client's stream, cold again, and once more."""

import os
from pathlib import Path

import openai
import pytest

from tests.e2e.fleet import Fleet, fleet_in
from tests.engines import llama_cpp

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]
MODEL = "small talk"


async def said(client: openai.AsyncOpenAI) -> str:
    """What a stream says."""
    stream = await client.completions.create(model=MODEL, prompt="a", max_tokens=4, stream=True)
    return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])


async def cold_again(fleet: Fleet) -> None:
    """Nothing of it is left, and the router lists it as cold."""
    await fleet.reached("d", "cold")
    await fleet.listed(MODEL, "cold")

    async def nothing_left() -> bool:
        return not fleet.orphans()

    await fleet.until("nothing is left", nothing_left)


async def test_llama_cpp_goes_cold_is_woken_by_the_official_client_and_goes_cold_again(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        fleet.add_registry()
        fleet.add_agent("n1", env={"PATH": f"{llama_cpp.programs(tmp_path / 'bin')}:{os.environ['PATH']}"})
        fleet.add_router("router", "--workers", "1")
        parameters = {"model": str(llama_cpp.model()), "ctx_size": 512}
        rule = {"replicas": {"min": 0, "max": 1}, "idle_s": 5, "dwell_s": 0}
        await fleet.apply("d", template="llama-cpp", model=MODEL, parameters=parameters, **rule)
        await fleet.listed(MODEL, "cold")
        async with openai.AsyncOpenAI(base_url=f"{fleet.router}/v1", api_key="none", max_retries=0) as client:
            for _ in range(2):
                assert await said(client)
                await fleet.reached("d", "ready", 1)
                assert fleet.orphans(), "nothing is known of the engine's process"
                await cold_again(fleet)
        starts = (fleet.folder / "agent-n1.log").read_text().count('"babysitter.started"')
        assert starts == 2, "it was started once for each stream"
