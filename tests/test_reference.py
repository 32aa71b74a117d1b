"""The reference pages say what the code says, and their generator misses nothing."""

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "script" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


reference: Any = _load()


@pytest.mark.parametrize("name", reference.BOOK)
def test_the_page_is_what_the_code_says_now(name: str) -> None:
    assert reference.BOOK[name]() == (reference.PAGES / name).read_text(), "run: python script/reference.py"


def test_every_event_has_a_meaning() -> None:
    meanings = reference.meanings()
    assert [name for name in reference.events() if not meanings.get(name)] == [], "say it in docs/reference/events.md"


def test_every_event_is_a_noun_and_what_happened_to_it() -> None:
    assert [name for name in reference.events() if not re.fullmatch(r"request|[a-z_]+\.[a-z_]+", name)] == []


def test_no_log_call_of_the_product_escapes_the_list() -> None:
    """Counted by text, which does not know how the generator reads."""
    calls = re.compile(r"\blog(?:ger)?\.(?:debug|info|warning|error|exception)\(\s*([a-z]+\b|\"[^\"]+\")")
    texts = [path.read_text() for room in reference.ROOMS for path in (ROOT / room).rglob("*.py")]
    named = {found.strip('"') for text in texts for found in calls.findall(text)}
    assert named - {"event"} - reference.events().keys() == set()


def test_an_event_named_by_a_helpers_caller_is_found() -> None:
    source = """
class Lease:
    def beat(self):
        self._complain("lease.lost", error)

    def _complain(self, event, error):
        log.warning(event, name=self.name, reason=str(error))
"""
    [(name, call, level)] = list(reference._events_in(ast.parse(source)))
    assert (name, level, sorted(reference._fields(call))) == ("lease.lost", "warning", ["name", "reason"])


def test_every_process_stands_in_settings_and_routes() -> None:
    settings, routes = reference.settings_page(), reference.routes_page()
    for name, _, _ in reference.SERVICES:
        assert f"\n## {name}\n" in settings
        assert f"\n## {name}" in routes
    assert settings.count("\n| `") > 100
    assert routes.count("\n| `") > 30


def test_metrics_have_their_names_as_scraped_and_their_labels() -> None:
    page = reference.metrics_page()
    assert "| `registry_http_answers_total` | counter | `route`, `status` |" in page
    assert "| `svc_router_request_duration_seconds` | histogram |" in page


def test_every_exit_code_has_a_meaning() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", reference.exits_page(), re.MULTILINE)
    assert [int(code) for code, _ in rows] == [*map(int, reference.Exit), *map(int, reference.MEANINGS)]
    assert all(meaning for _, meaning in rows)
