"""Prometheus' text form, as strictly as Prometheus reads it: its own client's pages, and everything that is none. A21"""

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Summary, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from common import exposition
from common.exposition import UnreadablePage, parse, text_of


def official_page() -> str:
    """A page of every type, written by Prometheus' own client."""
    registry = CollectorRegistry()
    Counter("c", "A counter.\nOf \\ two lines.", ["a", "b"], registry=registry).labels('q"\\\n', "ü,}{=").inc(3)
    Gauge("g", "A gauge.", registry=registry).set(-math.inf)
    Gauge("n", "", registry=registry).set(math.nan)
    Histogram("vllm:h_seconds", "A histogram.", ["m"], registry=registry).labels("x").observe(0.3)
    Summary("s", "A summary.", registry=registry).observe(2)
    Info("i", "An info.", registry=registry).info({"version": "1"})
    return generate_latest(registry).decode()


def test_official_clients_page_is_read_whole() -> None:
    ours, theirs = parse(official_page()), list(text_string_to_metric_families(official_page()))
    assert sum(len(family.samples) for family in ours.values()) == sum(len(family.samples) for family in theirs)
    values = {sample.name: sample.value for family in theirs for sample in family.samples}
    for family in ours.values():
        for sample in family.samples:
            assert sample.name in values
    histogram = ours["vllm:h_seconds"]
    assert histogram.kind == "histogram"
    assert {sample.name.removeprefix("vllm:h_seconds") for sample in histogram.samples} == {"_bucket", "_sum", "_count"}
    assert ours["c_total"].samples[0].pairs == (("a", r"q\"\\\n"), ("b", "ü,}{="))
    assert ours["c_total"].help == r"A counter.\nOf \\ two lines."


@pytest.mark.parametrize(
    ("line", "name", "pairs", "tail"),
    [
        ("a 1", "a", (), "1"),
        ("\ta{} +2.5e-3 ", "a", (), "+2.5e-3"),
        ('a:b { x = "1" , y="" , }\t.5 -17', "a:b", (("x", "1"), ("y", "")), ".5 -17"),
        ('a{x="\u2028"}NaN', "a", (("x", "\u2028"),), "NaN"),
    ],
)
def test_line_is_read_in_every_spelling(line: str, name: str, pairs: object, tail: str) -> None:
    [sample] = parse(line)[name].samples
    assert (sample.name, sample.pairs, " ".join(sample.tail.split())) == (name, pairs, tail)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<html><body>404</body></html>", "line 1 is no sample"),
        ("a 1\n{", "line 2"),
        ("a", "line 1"),
        ("a1", "line 1"),
        ("a x", "line 1"),
        ("a 1_000", "line 1"),
        ("a 1 2 3", "line 1"),
        ("a 1 1e3", "line 1"),
        ("a 1 99999999999999999999", "line 1"),
        ("a 1e999", "too great"),
        ('a{x="1} 1', "line 1"),
        ('a{x="\\q"} 1', "line 1"),
        ("a{x=1} 1", "line 1"),
        ('a{x="1" y="2"} 1', "line 1"),
        ('a{x="1",x="2"} 1', "label twice"),
        ('a{__name__="b"} 1', "label twice"),
        ("a 1\r\n", "control"),
        ("a 1\x00", "control"),
        ("a 1\na 1", "second time"),
        ('a{x="1",y="2"} 1\na{y="2",x="1",z=""} 1', "second time"),
        ("# TYPE a banana\na 1", "banana"),
        ('{"a.b"} 1', "line 1"),
        ('a{x="1"} 1 # {trace_id="x"} 1', "line 1"),
    ],
)
def test_what_prometheus_would_refuse_is_refused_with_its_reason_A21(text: str, reason: str) -> None:
    with pytest.raises(UnreadablePage, match=reason):
        parse(text)


def test_comments_say_what_they_can_and_break_nothing() -> None:
    text = "#\n# c\n#TYPE a gauge\n# TYPE a counter\n# TYPE a gauge\n# HELP a \\q\na 1\n# TYPE b gauge\n\nb 1\n# EOF"
    families = parse(text)
    assert (families["a"].kind, families["a"].help, families["b"].kind) == ("counter", "", "gauge")


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"a 1", "application/json", "application/json"),
        (b"a 1", "application/openmetrics-text; version=1.0.0", "openmetrics"),
        (b"a 1", "text/html", "text/html"),
        (b"\x1f\x8b\x08\x00\xff", "text/plain", "UTF-8"),
    ],
)
def test_body_of_another_form_is_refused_A21(body: bytes, content_type: str, reason: str) -> None:
    with pytest.raises(UnreadablePage, match=reason):
        text_of(body, content_type)


@pytest.mark.parametrize("content_type", [None, "text/plain", "Text/Plain; version=1.0.0; charset=utf-8"])
def test_body_of_this_form_is_text(content_type: str | None) -> None:
    assert text_of(b"a 1", content_type) == "a 1"


def test_number_of_series_is_bounded_A21(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "SERIES_LIMIT", 10)
    assert len(parse("\n".join(f"a{number} 1" for number in range(10)))) == 10
    with pytest.raises(UnreadablePage, match="more than 10 series"):
        parse("\n".join(f"a{number} 1" for number in range(11)))


@given(st.text(st.sampled_from('ab{}="\\,# \n\t1e.+-NaInfTYPEHL_:'), max_size=60))
@settings(max_examples=500, deadline=None)
def test_no_text_does_more_than_be_refused_A21(text: str) -> None:
    with contextlib.suppress(UnreadablePage):
        parse(text)
