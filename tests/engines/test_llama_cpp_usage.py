"""What llama.cpp's own server says of its prefix cache, as the router reads it."""

import httpx
import pytest

from router.policy.usage import usage_of
from tests.engines import llama_cpp

PROMPT = "the quick brown fox jumps over the lazy dog " * 20


@pytest.mark.world
@pytest.mark.timeout(700)
def test_usage_of_every_api_of_llama_cpp_says_that_the_prompt_was_cached_W46() -> None:
    said = [{"role": "user", "content": PROMPT}]
    asked = {
        "/v1/chat/completions": {"messages": said, "max_tokens": 4},
        "/v1/completions": {"prompt": PROMPT, "max_tokens": 4},
        "/v1/messages": {"messages": said, "max_tokens": 4},
    }
    with llama_cpp.serving("tiny", n_parallel=1) as engine, httpx.Client(base_url=engine.url, timeout=60) as client:
        for path, body in asked.items():
            for _ in range(2):
                answer = client.post(path, json={"model": "tiny", **body}).content
            usage = usage_of(answer)
            assert usage is not None, (path, answer[-500:])
            assert 0.9 < (usage.cached_share() or 0) <= 1.0, (path, answer[-500:])
            assert usage.written == 4
        for _ in range(10):  # some of its streams lack `message_start` (docs/engines.md)
            with client.stream(
                "POST", "/v1/messages", json={"model": "tiny", "stream": True, **asked["/v1/messages"]}
            ) as stream:
                first = next(stream.iter_raw())
            usage = usage_of(first)
            if usage is not None:
                break
        assert usage is not None, first
        assert 0.9 < (usage.cached_share() or 0) <= 1.0, first
