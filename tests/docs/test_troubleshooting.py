"""The page of symptoms knows every error code that a client of the router can see, and what it names exists."""

import re

from router.keys import Refusal
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
CODE = r'\b[45]\d\d,\s*"([a-z_]+)"'


def codes() -> set[str]:
    files = [ROOT / "router" / "dispatch.py", *(ROOT / "router" / "proxy").glob("*.py")]
    text = "".join(path.read_text() for path in files)
    return set(re.findall(CODE, text)) | {why.value for why in Refusal}


def test_every_error_code_of_the_router_has_its_row() -> None:
    first_cells = [line.split("|")[1] for line in PAGE.splitlines() if re.match(r"\| \d{3} ", line)]
    named = set(re.findall(r"`([a-z_]+)`", "".join(first_cells)))
    assert len(codes()) > 20
    assert codes() - named == set()


def test_every_setting_that_is_named_is_one() -> None:
    settings = (ROOT / "docs" / "reference" / "settings.md").read_text()
    known = set(re.findall(r"^\| `([a-z_.]+)` \|", settings, re.MULTILINE))
    known |= {name.rpartition(".")[2] for name in known}
    dotted = set(re.findall(r"`((?:babysitter|probes|limits|jobs|cbclient)\.[a-z_]+)`", PAGE))
    plain = set(
        re.findall(r"`([a-z]+(?:_[a-z]+)*_(?:s|limit|seconds|connections|replicas|port|networks|paths))`", PAGE)
    )
    assert dotted - known == set()
    assert {name for name in plain - known - codes() if not name.startswith("svc_")} == set()
