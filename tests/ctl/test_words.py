"""Durations, moments and sizes, and tables as text."""

import pytest

from ctl.sse import Events, ServerSentEvent
from ctl.table import TextTable, as_text, visible
from ctl.views import node
from ctl.views.words import age, duration, moment, size

SPOKEN = {
    -1: "0s", 0: "0s", 0.004: "4ms", 1.44: "1.4s", 12: "12s", 59.6: "1m00s", 185: "3m05s", 7800: "2h10m", 356_400: "4d03h",
}  # fmt: skip


@pytest.mark.parametrize(("seconds", "text"), SPOKEN.items())
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_moments_are_read_from_numbers_and_iso_text() -> None:
    assert moment("1970-01-01T00:01:00Z") == moment("1970-01-01T00:01:00") == moment(60) == 60.0
    assert moment("soon") is moment(None) is None
    assert age(30, 60.0) == "30s"
    assert age(None, 60.0) == ""


def test_sizes_have_a_unit() -> None:
    assert [size(count) for count in (5, 2 << 10, 3 << 20, 4 << 30, 5 << 40)] == [
        "5 B", "2 KiB", "3 MiB", "4 GiB", "5.0 TiB",
    ]  # fmt: skip


def test_numbers_stand_right_and_no_line_ends_with_blanks() -> None:
    text = as_text(TextTable(("NAME", "N"), [("a", "5"), ("long", "")], right=frozenset({"N"})))
    assert text == "NAME  N\na     5\nlong  -\n"


def test_control_characters_become_visible() -> None:
    assert visible("a\x1b[1m\x07é\n") == "a�[1m�é\n"


def test_events_are_the_same_however_the_network_cuts_them() -> None:
    raw = ': beat\n\nid: 1\nevent: status\ndata: {"a":\ndata: 1}\n\ndata: später\r\n\r\n'.encode()
    expected = [ServerSentEvent("status", '{"a":\n1}', "1"), ServerSentEvent("message", "später", "1")]
    for step in (1, 2, 7, len(raw)):
        events = Events()
        found = [event for at in range(0, len(raw), step) for event in events.feed(raw[at : at + step])]
        assert found == expected


def test_babysitter_whose_settings_are_older_than_its_file_is_shown_so_W31() -> None:
    told = node.babysitter_detail({"restart_count": 2, "need_restart": ["backend", "port"]})
    assert told == "restarts 2; runs with older settings than its file: backend, port"
    refused = {"need_restart": [], "config_refused": "babysitter.toml: no TOML\nmore"}
    assert node.babysitter_detail(refused) == "has a file with a fault, which is not in force: babysitter.toml: no TOML"
    assert node.babysitter_detail({"need_restart": [], "config_refused": None}) == node.babysitter_detail({}) == ""
