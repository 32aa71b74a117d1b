"""`ask_usage` at a real engine: its streams are counted exactly, and a client that did not ask sees no more than it would."""

import json
import re
from pathlib import Path

import httpx
import pytest

from tests.engines.harness import engine_node, fleet, until

pytestmark = [pytest.mark.world, pytest.mark.timeout(600)]
MODEL = "llama-3.1-8b"
"""As config/examples/llama-cpp.toml names it."""
ASKED = {
    "model": MODEL,
    "stream": True,
    "max_tokens": 7,
    "messages": [{"role": "user", "content": "the quick brown fox"}],
}


def events(url: str, **more: object) -> list[dict[str, object]]:
    answer = httpx.post(f"{url}/v1/chat/completions", json={**ASKED, **more}, timeout=60)
    assert answer.status_code == 200, answer.text
    data = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


def test_a_stream_of_llama_cpp_is_counted_exactly_for_a_client_that_did_not_ask(tmp_path: Path) -> None:
    (tmp_path / "router.toml").write_text(f'[models."{MODEL}"]\nask_usage = true\n')
    with (
        fleet(tmp_path, "--config", str(tmp_path / "router.toml")) as where,
        engine_node("llama_cpp", tmp_path / "e", registry=where.registry.url) as node,
    ):
        node.start()
        node.ready()
        until("it is routed", lambda: where.service(node.port).get("standing") == "fresh")

        def counted(kind: str) -> float:
            page = httpx.get(f"{where.url}/metrics").text
            return sum(
                float(one) for one in re.findall(rf'svc_router_tokens_total{{[^}}]*kind="{kind}"[^}}]*}} (\S+)', page)
            )

        seen = events(where.url)
        assert all(event["choices"] and event.get("usage") is None for event in seen)
        until("it is counted", lambda: counted("completion") == 7)
        assert counted("prompt") > 0
        assert counted("estimated") == 0
        [told] = [
            event["usage"] for event in events(where.url, stream_options={"include_usage": True}) if event.get("usage")
        ]
        until("it is counted", lambda: counted("completion") == 14)
        assert isinstance(told, dict)
        assert counted("prompt") == 2 * told["prompt_tokens"]
