"""What engines tell of their work, in the words of their own `/metrics`."""

import pytest

from babysitter.engine_metrics import Work, parse_work

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.5e+03
vllm:generation_tokens_total{engine="0",model_name="m"} 20.0
vllm:generation_tokens_created{engine="0",model_name="m"} 1.79e+09
"""
LLAMA = """\
llamacpp:tokens_predicted_total 9
llamacpp:n_decode_total 33
llamacpp:requests_processing 1
llamacpp:requests_deferred 5
"""
SGLANG = """\
sglang:num_running_reqs{model_name="m"} 3
sglang:num_queue_reqs{model_name="m"} 1
sglang:generation_tokens_total{model_name="m"} 7
"""


@pytest.mark.parametrize(
    ("text", "work"),
    [
        (VLLM, Work(running=3, waiting=4, steps=1520.0)),
        (LLAMA, Work(running=1, waiting=5, steps=33.0)),
        (SGLANG, Work(running=3, waiting=1, steps=None)),
    ],
)
def test_work_is_read_from_each_engines_own_names(text: str, work: Work) -> None:
    assert parse_work(text) == work


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>",
        "up 1",
        "vllm:num_requests_running",
        "vllm:num_requests_running{",
        "llamacpp:requests_processing NaN",
    ],
)
def test_rubbish_tells_of_no_work(text: str) -> None:
    assert parse_work(text) is None
