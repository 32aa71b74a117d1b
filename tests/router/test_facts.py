import pytest

from router.facts import BadBody, forwarded_affinity, read_json


def facts(body: bytes, *, want_text: bool = False, forwarded: str | None = None):  # type: ignore[no-untyped-def]  # noqa: ANN201 - a shorthand
    return read_json(body, want_text=want_text, forwarded=forwarded)


def test_model_stream_and_key_are_found_wherever_they_stand() -> None:
    found = facts(b'{"messages":[{"content":"x"}],"prompt_cache_key":"k","stream":true,"model":"m"}')
    assert (found.model, found.stream, found.affinity) == ("m", True, "key:k")


@pytest.mark.parametrize(
    "body",
    [b'{"model":"m","stream":null,"prompt_cache_key":7,"messages":"odd"}', b'{"model":"m","stream":"yes"}'],
)
def test_odd_types_of_other_fields_are_the_replicas_business(body: bytes) -> None:
    assert facts(body, want_text=True).stream is False
    assert facts(body).affinity is None


def test_null_model_counts_as_none() -> None:
    assert facts(b'{"model":null}').model is None


@pytest.mark.parametrize("body", [b'{"model":"a","model":"b"}', b'{"model":null,"model":"b"}', b'{"model":{}}'])
def test_ambiguous_model_is_refused_D24(body: bytes) -> None:
    with pytest.raises(BadBody, match="model"):
        facts(body)


@pytest.mark.parametrize("spelling", ["MODEL", "Model", "mOdEl", "mod\\u0065L"])
@pytest.mark.parametrize("value", ['"large"', "null", "{}"])
def test_model_in_another_case_is_refused_for_go_reads_it_as_model_W1(spelling: str, value: str) -> None:
    with pytest.raises(BadBody, match="lower case"):
        facts(f'{{"model":"small","{spelling}":{value}}}'.encode())


def test_model_with_an_escape_in_its_name_is_the_model_W1() -> None:
    assert facts(b'{"mod\\u0065l":"m"}').model == "m"
    with pytest.raises(BadBody, match="twice"):
        facts(b'{"mod\\u0065l":"m","model":"n"}')


def test_a_bad_body_leaves_nothing_for_the_next_one() -> None:
    with pytest.raises(BadBody):
        facts(b'{"model":"a"')
    assert facts(b"{}").model is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"messages":[{"content":"abc"},{"content":[{"type":"text","text":"de"},{"type":"image_url"}]}]}', 5),
        ('{"messages":[{"content":"é"}]}'.encode(), 2),
        (b'{"prompt":"abcd"}', 4),
        (b'{"prompt":["ab","c"]}', 3),
        (b'{"input":"abcd"}', 0),
        (b'{"messages":[{"content":null},7]}', 0),
    ],
)
def test_text_is_measured_in_bytes_only_when_asked(body: bytes, expected: int) -> None:
    assert facts(body, want_text=True).text_bytes == expected
    assert facts(body).text_bytes is None


def test_forwarded_address_with_agent_ties_requests_only_when_present() -> None:
    assert forwarded_affinity(b"1.2.3.4, 5.6.7.8", b"curl") == "addr:1.2.3.4|curl"
    assert forwarded_affinity(b"1.2.3.4", None) == "addr:1.2.3.4|"
    assert forwarded_affinity(None, b"curl") is None
    assert forwarded_affinity(b" ,x", b"curl") is None
    assert facts(b'{"prompt_cache_key":"k"}', forwarded="addr:x").affinity == "key:k"
    assert facts(b"{}", forwarded="addr:x").affinity == "addr:x"


@pytest.mark.parametrize(
    ("members", "choices"),
    [
        ("", 1),
        (',"n":3', 3),
        (',"n":"3"', 1),
        (',"n":-1', 1),
        (',"n":true', 1),
        (',"n":null', 1),
        (',"prompt":["a","b"]', 2),
        (',"prompt":["a","b"],"n":2', 4),
        (',"prompt":[1,2,3]', 1),
        (',"prompt":[[1,2],[3],[4]]', 3),
        (',"prompt":[]', 1),
    ],
)
def test_choices_of_a_stream_are_counted_by_n_and_prompts_W44(members: str, choices: int) -> None:
    body = f'{{"model":"m","stream":true{members}}}'.encode()
    assert read_json(body, want_text=False, forwarded=None).choices == choices
    assert read_json(body.replace(b"true", b"false", 1), want_text=False, forwarded=None).choices == 1
