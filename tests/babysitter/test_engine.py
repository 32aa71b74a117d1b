"""Opt-in (`pytest -m engine`): a real inference engine behind the babysitter, answered to the OpenAI client.

`SVC_ENGINE_PYTHON` names an interpreter that has the CPU build of PyTorch and `transformers[serving]`. The model is a
tiny Llama with random weights that the test makes itself; nothing is downloaded.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.babysitter.conftest import Registry
from tests.babysitter.real import PROJECT, ask, running, until
from tests.ports import free_port

PYTHON = os.environ.get("SVC_ENGINE_PYTHON", "")
MAKE = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
words = {word: n for n, word in enumerate(["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "hello", "world"])}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
fast.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), bos_token_id=1, eos_token_id=2, **size))
model.save_pretrained(sys.argv[1])
fast.save_pretrained(sys.argv[1])
"""

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        not PYTHON, reason="SVC_ENGINE_PYTHON names no interpreter with torch and transformers[serving]"
    ),
    pytest.mark.timeout(600),
]


@pytest.fixture
def router_port(tmp_path: Path, registry: Registry) -> Iterator[int]:
    port = free_port()
    argv = [sys.executable, "-m", "router", "--router-port", str(port), "--registry-url", registry.url]
    with (
        (tmp_path / "router.log").open("wb") as out,
        subprocess.Popen(argv, cwd=PROJECT, stdout=out, stderr=out) as router,
    ):
        until("the router answers", lambda: ask(f"http://127.0.0.1:{port}/health"))
        yield port
        router.terminate()


def test_real_engine_behind_babysitter_registry_and_router_answers_the_openai_client(
    tmp_path: Path, registry: Registry, router_port: int
) -> None:
    model = tmp_path / "tiny-llama"
    subprocess.run([PYTHON, "-c", MAKE, str(model)], check=True, timeout=300, cwd=tmp_path)
    # Its streams end without [DONE], so the record says that there is no mark to wait for.
    top = {"models": [str(model)], "registry_url": registry.url, "metadata": {"stream_end_mark": False}}
    with running(tmp_path, top=top) as node:
        transformers = Path(PYTHON).with_name("transformers")
        node.backend = {
            "type": "command",
            "command": str(transformers),
            "args": ["serve", str(model), "--host", "127.0.0.1", "--port", str(node.port), "--device", "cpu"],
            "env": {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "2"},
        }
        node.probes = {"start_interval_s": 1, "timeout_s": 10, "generate_path": "/v1/chat/completions"}
        node.start()
        pid = node.ready(300)
        url = f"http://127.0.0.1:{router_port}"
        until("routed", lambda: (ask(f"{url}/v1/models") or {}).get("data"))
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        asked: list[Any] = [{"role": "user", "content": "hello world"}]
        said = client.chat.completions.create(model=str(model), messages=asked, max_tokens=4)
        assert said.choices[0].message.content is not None
        stream = client.chat.completions.create(model=str(model), messages=asked, max_tokens=4, stream=True)
        assert len(list(stream)) > 0
        assert node.ready() == pid
        node.babysitters[-1].terminate()
        assert node.babysitters[-1].wait(60) == 0
        assert node.processes() == []
    assert (PROJECT / "config" / "examples" / "transformers.toml").exists()
