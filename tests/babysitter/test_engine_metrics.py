"""What engines tell of their work, in the words of their own `/metrics`."""

import pytest

from babysitter.engine_metrics import Work, parse_work
from common.exposition import UnreadablePage

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 4.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.5e+03
vllm:generation_tokens_total{engine="0",model_name="m"} 20.0
vllm:generation_tokens_created{engine="0",model_name="m"} 1.79e+09
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1244.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 512.0
vllm:external_prefix_cache_hits_total{engine="0",model_name="m"} 7.0
vllm:gpu_prefix_cache_queries_total{engine="0",model_name="m"} 1244.0
vllm:gpu_prefix_cache_hits_total{engine="0",model_name="m"} 512.0
"""
OLD_VLLM = """\
vllm:num_requests_running 1
vllm:gpu_cache_usage_perc 0.75
# HELP vllm:gpu_prefix_cache_queries_total GPU prefix cache queries, in terms of number of queried {unit}.
# TYPE vllm:gpu_prefix_cache_queries_total counter
vllm:gpu_prefix_cache_queries_total 10
# HELP vllm:gpu_prefix_cache_hits_total GPU prefix cache hits, in terms of number of cached {unit}.
# TYPE vllm:gpu_prefix_cache_hits_total counter
vllm:gpu_prefix_cache_hits_total 5
"""
LLAMA = """\
llamacpp:prompt_tokens_total 254
llamacpp:prompt_tokens_cached_total 252
llamacpp:tokens_predicted_total 9
llamacpp:n_decode_total 33
llamacpp:requests_processing 1
llamacpp:requests_deferred 5
"""
OLD_LLAMA = """\
llamacpp:prompt_tokens_total 254
llamacpp:requests_processing 1
llamacpp:kv_cache_usage_ratio 0.5
"""
SGLANG = """\
sglang:num_running_reqs{model_name="m",tp_rank="0"} 3
sglang:num_running_reqs{model_name="m",tp_rank="1"} 3
sglang:num_queue_reqs{model_name="m",priority=""} 2
sglang:num_queue_reqs{model_name="m",priority="1"} 1
sglang:num_queue_reqs{model_name="m",priority="7"} 1
sglang:generation_tokens_total{model_name="m"} 7
sglang:token_usage{model_name="m"} 0.28
sglang:prompt_tokens_total{model_name="m",is_streaming="false"} 60
sglang:prompt_tokens_total{model_name="m",is_streaming="true"} 40
sglang:cached_tokens_total{model_name="m",cache_source="device"} 30
sglang:cached_tokens_total{model_name="m",cache_source="host"} 10
sglang:cached_tokens_total{model_name="m",cache_source="total"} 40
"""


@pytest.mark.parametrize(
    ("text", "work"),
    [
        (VLLM, Work(3, 4, 1520.0, kv_cache_usage=0.5, prefix_query_tokens=1244, prefix_hit_tokens=512)),
        (
            OLD_VLLM.format(unit="tokens"),
            Work(1, None, None, kv_cache_usage=0.75, prefix_query_tokens=10, prefix_hit_tokens=5),
        ),
        (OLD_VLLM.format(unit="blocks"), Work(1, None, None, kv_cache_usage=0.75)),
        (LLAMA, Work(1, 5, 33.0, prefix_query_tokens=506, prefix_hit_tokens=252)),
        (OLD_LLAMA, Work(1, None, None, kv_cache_usage=0.5)),
        (SGLANG, Work(3, 2, None, kv_cache_usage=0.28, prefix_query_tokens=100, prefix_hit_tokens=40)),
        ("vllm:num_requests_running 2\nvllm:generation_tokens_total 8\n", Work(2, None, 8.0)),
    ],
)
def test_work_is_read_from_each_engines_own_names_and_what_it_does_not_tell_is_absent(text: str, work: Work) -> None:
    assert parse_work(text) == work


def test_page_of_something_else_tells_of_no_work() -> None:
    assert parse_work("") is None
    assert parse_work("up 1\nprocess_open_fds 3\n") is None


@pytest.mark.parametrize("value", ["NaN", "-1", "1e30", "+Inf", "-Inf"])
@pytest.mark.parametrize(
    "name", ["vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:prefix_cache_hits_total"]
)
def test_figure_that_cannot_be_true_is_absent_and_no_other_is(name: str, value: str) -> None:
    lines = [line for line in VLLM.splitlines() if not line.startswith(f"{name}{{")]
    work, well = parse_work("\n".join([*lines, f"{name} {value}"])), parse_work(VLLM)
    assert work is not None
    assert well is not None
    assert work.odd
    assert name in work.odd[0]
    of = {
        "vllm:num_requests_running": {"running"},
        "vllm:kv_cache_usage_perc": {"kv_cache_usage"},
        "vllm:prefix_cache_hits_total": {"prefix_query_tokens", "prefix_hit_tokens"},
    }[name]
    for figure in set(Work.__slots__) - {"odd"}:
        assert getattr(work, figure) == (None if figure in of else getattr(well, figure))


def test_cache_that_is_too_full_or_found_more_than_was_asked_for_is_odd() -> None:
    assert parse_work("sglang:token_usage 1.5\n") == Work(odd=("sglang:token_usage 1.5",))
    work = parse_work("vllm:prefix_cache_queries_total 5\nvllm:prefix_cache_hits_total 6\n")
    assert work == Work(odd=("6 tokens found in the prefix cache, of 5",))


@pytest.mark.parametrize(
    "text",
    [
        "<html>",
        "vllm:num_requests_running",
        "vllm:num_requests_running{",
        "vllm:num_requests_running 1\nvllm:num_requests_running 2\n",
        VLLM + "\x00\x01",
    ],
)
def test_rubbish_is_refused(text: str) -> None:
    with pytest.raises(UnreadablePage):
        parse_work(text)
