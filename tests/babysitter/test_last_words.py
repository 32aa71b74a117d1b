"""Why a server died: the end of the first traceback and the last lines, each once, within the room (W49)."""

import sys
from pathlib import Path

import pytest

from babysitter.last_words import find_cause, last_words
from babysitter.server_log import ServerLog
from tests.babysitter.real import running

ROOM = 4096
FRAMES = "".join(f'  File "engine.py", line {number}, in f{number}\n    g{number}()\n' for number in range(30))
CAUSE = f"Traceback (most recent call last):\n{FRAMES}ValueError: No available memory for the cache blocks\n"
AFTER = "Traceback (most recent call last):\n" + FRAMES * 3 + "RuntimeError: Engine core initialization failed\n"
PREFIX = "(EngineCore_0 pid=7) ERROR 09-01 12:00:00 [core.py:700] "


def test_first_traceback_beyond_the_room_is_shown_by_its_end_before_the_last_lines_W49() -> None:
    told = last_words("loading\n" + CAUSE + AFTER, ROOM)
    assert len(told.encode()) <= ROOM
    lines = told.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines.index("ValueError: No available memory for the cache blocks") < 10
    assert lines[-1] == "RuntimeError: Engine core initialization failed"
    assert told.count("No available memory") == 1


def test_traceback_behind_a_loggers_words_is_found_W49() -> None:
    said = "".join(PREFIX + line + "\n" for line in CAUSE.splitlines()) + "x" * 100 + "\n" + AFTER
    told = last_words(said, ROOM)
    assert f"{PREFIX}ValueError: No available memory for the cache blocks" in told.splitlines()[:10]


def test_short_output_is_shown_as_it_is_W49() -> None:
    assert last_words(CAUSE, ROOM) == CAUSE.rstrip("\n")


def test_cause_is_looked_for_in_the_other_stream_W49() -> None:
    told = last_words("bye\n", ROOM, elsewhere=CAUSE + "more\n")
    assert "No available memory" in told
    assert told.endswith("bye")


@pytest.mark.parametrize(
    "said", ["", "x" * 9999, "\n" * 9999, "é" * 9999, "Traceback (most recent call last):", CAUSE * 99, AFTER[:6000]]
)
def test_room_is_kept_whatever_was_said_W49(said: str) -> None:
    for room in (100, ROOM):
        assert len(last_words(said, room).encode()) <= room


def test_traceback_without_an_end_is_taken_as_far_as_it_goes_W49() -> None:
    found = find_cause(["x", "Traceback (most recent call last):", "  File"])
    assert found is not None
    assert found.lines == ["Traceback (most recent call last):", "  File"]


def test_tail_says_where_more_is_W49(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "out", tmp_path / "err")
    log.mark()
    log.stderr.write_text(CAUSE + AFTER)
    told = log.tail(ROOM)
    assert len(told.encode()) <= ROOM
    assert told.splitlines()[-1] == f"(more: {log.stderr})"
    assert "No available memory" in told
    log.close()


def test_failed_start_tells_its_root_cause_W49(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(f"import sys\nsys.stderr.write({CAUSE + AFTER!r})\nsys.exit(78)\n")
    backend = {"type": "command", "command": sys.executable, "args": [str(script)]}
    with running(tmp_path, backend=backend) as node:
        node.start()
        told = node.status("failed")["error_message"]
        assert "ValueError: No available memory for the cache blocks" in told
        assert "Engine core initialization failed" in told
        assert f"(more: {tmp_path}/logs/server_r1_stderr.log)" in told
