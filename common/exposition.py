"""PURE. Prometheus' text form (version 0.0.4), read strictly: what a page says, or why it is not to be believed.

As strict as Prometheus' own parser, which refuses a whole scrape for one line: the router joins many engines' pages to
one. prometheus-client's parser lets more pass, and takes three times as long.
"""

import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

ACCEPT = "text/plain;version=0.0.4"
PAGE_LIMIT_BYTES = 2 << 20
"""vLLM's page has 50 KB for one engine, and grows with its engines."""
SERIES_LIMIT = 20_000
KINDS = frozenset({"counter", "gauge", "histogram", "summary", "untyped"})
_PARTS = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_LABEL, _EQUALS, _SAID = r"[a-zA-Z_][a-zA-Z0-9_]*+", r"[ \t]*+=[ \t]*+", r'(?:[^"\\]|\\[\\"n])*+'
_VALUE = r"[+-]?(?:\d{1,64}(?:\.\d{0,64})?|\.\d{1,64})(?:[eE][+-]?\d{1,4})?|[+-]?[Ii]nf|[Nn]a[Nn]"
_SAMPLE = re.compile(
    rf'({_NAME})(?:[ \t]*+\{{[ \t]*+((?:{_LABEL}{_EQUALS}"{_SAID}"[ \t]*+(?:,[ \t]*+|(?=\}})))*+)\}}[ \t]*+|[ \t]++)'
    rf"({_VALUE})((?:[ \t]++-?\d{{1,18}})?)[ \t]*+"
)
_ABOUT = re.compile(rf"#[ \t]++(HELP|TYPE)[ \t]++({_NAME})(?:[ \t]++(.*))?")
_HELP = re.compile(r"(?:[^\\]|\\[\\n])*+")
_PAIRS = re.compile(f'({_LABEL}){_EQUALS}"({_SAID})"')


class UnreadablePage(ValueError):
    """The text says what is wrong with the page."""


class Sample(NamedTuple):
    """One line: `name{pairs} value`. `pairs` are as they stand on the page, escaped; `tail` is value and timestamp."""

    name: str
    pairs: tuple[tuple[str, str], ...]
    value: float
    tail: str


@dataclass(slots=True)
class Family:
    """Samples of one name, or of a histogram's or summary's names. `kind` and `help` are empty where nobody says."""

    kind: str = ""
    help: str = ""
    samples: list[Sample] = field(default_factory=list)


def text_of(body: bytes, content_type: str | None) -> str:
    """The text of an answer's body.

    Args:
        body: At most `PAGE_LIMIT_BYTES`, which is the reader's to hold.
        content_type: The header; None where there is none.

    Raises:
        UnreadablePage: It is none in this form.
    """
    kind = (content_type or "text/plain").partition(";")[0].strip().lower()
    if kind != "text/plain":
        raise UnreadablePage(f"its content type is {kind[:80]!r}, not text/plain")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise UnreadablePage("it is no text in UTF-8") from error


def parse(text: str) -> dict[str, Family]:
    """The families of a page, by name.

    Raises:
        UnreadablePage: It is no page in this form, or says a thing twice.
    """
    if _CONTROL.search(text):
        raise UnreadablePage("it has control characters")
    families: dict[str, Family] = {}
    seen: set[tuple[object, ...]] = set()
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t")  # noqa: PLW2901 - the same line
        if not line:
            continue
        if line[0] == "#":
            _note(line, families)
            continue
        sample = _sample(line, number)
        key = (sample.name, *sorted(pair for pair in sample.pairs if pair[1]))  # an empty label is none
        if key in seen:
            raise UnreadablePage(f"line {number} says {sample.name} a second time for the same labels")
        seen.add(key)
        if len(seen) > SERIES_LIMIT:
            raise UnreadablePage(f"it has more than {SERIES_LIMIT} series")
        families.setdefault(_family_of(sample.name, families), Family()).samples.append(sample)
    return families


def _note(line: str, families: dict[str, Family]) -> None:
    """Take what a comment says of a family: the first word on its type counts, and none after its samples."""
    about = _ABOUT.fullmatch(line)
    if about is None:
        return
    word, name, said = about.groups(default="")
    family = families.setdefault(name, Family())
    if word == "HELP" and not family.help and _HELP.fullmatch(said):
        family.help = said
    elif word == "TYPE" and not family.kind and not family.samples:
        if said not in KINDS:
            raise UnreadablePage(f"{name} is of a type that does not exist, {said[:40]!r}")
        family.kind = said


def _sample(line: str, number: int) -> Sample:
    found = _SAMPLE.fullmatch(line)
    if found is None:
        raise UnreadablePage(f"line {number} is no sample")
    name, labels, value_text, timestamp = found.groups()
    pairs: tuple[tuple[str, str], ...] = tuple(_PAIRS.findall(labels)) if labels else ()
    names = {pair[0] for pair in pairs}
    if len(names) < len(pairs) or "__name__" in names:
        raise UnreadablePage(f"line {number} has a label twice")
    value = float(value_text)
    if math.isinf(value) and value_text[-1].isdigit():
        raise UnreadablePage(f"line {number} has a number that is too great")
    return Sample(name, pairs, value, value_text + timestamp)


def _family_of(name: str, families: dict[str, Family]) -> str:
    """The family that a sample of this name belongs to."""
    if name in families:
        return name
    for kind, parts in _PARTS.items():
        for part in parts:
            family = families.get(name.removesuffix(part)) if name.endswith(part) else None
            if family is not None and family.kind == kind:
                return name.removesuffix(part)
    return name
