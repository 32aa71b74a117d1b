import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from common import log

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Set up JSON logs, and read back what was logged; the process's logging is put back afterwards."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    kept = (list(logging.root.handlers), logging.root.level)
    log.setup("sample", level="info", json=True)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    logging.root.handlers[:], level = kept
    logging.root.setLevel(level)


def test_a_line_has_service_event_level_time_and_fields(lines: Lines) -> None:
    structlog.get_logger("x").info("thing.happened", port=8000, names=("a", "b"))
    (line,) = lines()
    assert line["service"] == "sample"
    assert line["event"] == "thing.happened"
    assert line["level"] == "info"
    assert line["timestamp"].endswith("Z")
    assert line["port"] == 8000
    assert line["names"] == ["a", "b"]


def test_lines_below_the_level_are_dropped(lines: Lines) -> None:
    structlog.get_logger("x").debug("quiet")
    logging.getLogger("aiohttp").debug("quiet")
    assert lines() == []


def test_standard_library_loggers_end_in_the_same_stream_with_the_same_redaction(lines: Lines) -> None:
    logging.getLogger("aiohttp.server").warning("call with %s", "Bearer abc", extra={"api_key": "s3cret"})
    (line,) = lines()
    assert line["service"] == "sample"
    assert line["level"] == "warning"
    assert line["event"] == "call with Bearer [hidden]"
    assert line["api_key"] == "[hidden]"


def test_ids_of_the_context_join_lines(lines: Lines) -> None:
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("x").info("one")
    structlog.get_logger("x").info("two")
    first, second = lines()
    assert first["request_id"] == "r1"
    assert "request_id" not in second


def test_an_exception_is_logged_with_its_trace(lines: Lines) -> None:
    try:
        raise RuntimeError("no")
    except RuntimeError:
        structlog.get_logger("x").exception("failed")
    assert "RuntimeError: no" in lines()[0]["exception"]


@pytest.mark.parametrize(
    "name", ["authorization", "Authorization", "api_key", "apiKey", "registry_token", "client_secret", "password", "Set-Cookie"]
)  # fmt: skip
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert log.redact(None, "info", {name: "value", "deep": {name: ["value"]}}) == {
        name: "[hidden]",
        "deep": {name: "[hidden]"},
    }


@pytest.mark.parametrize("name", ["prompt", "messages", "input", "body"])
def test_a_prompt_never_leaves(name: str) -> None:
    assert log.redact(None, "info", {name: [{"content": "private"}]}) == {name: "[hidden]"}


@pytest.mark.parametrize("name", ["max_tokens", "prompt_tokens", "model", "tokens"])
def test_a_harmless_name_keeps_its_value(name: str) -> None:
    assert log.redact(None, "info", {name: 7}) == {name: 7}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("header was Bearer abc.def", "header was Bearer [hidden]"),
        ("GET http://user:pass@host:1/x", "GET http://[hidden]@host:1/x"),
        ("key sk-abcdef123456 used", "key [hidden] used"),
        ("a task-force of ten", "a task-force of ten"),
        (b"raw", b"raw"),
    ],
)
def test_a_secret_is_known_by_its_form(value: Any, expected: Any) -> None:
    assert log.redact(None, "info", {"event": value}) == {"event": expected}


def test_a_long_string_is_cut() -> None:
    found = log.redact(None, "info", {"text": "x" * 10_000})
    assert len(found["text"]) == log.FIELD_LIMIT_BYTES + 1


def test_logs_go_to_standard_error_and_are_json_when_that_is_no_terminal() -> None:
    code = (
        "from common import log; import structlog; log.setup('s'); structlog.get_logger().info('event', where=object)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert json.loads(done.stderr)["event"] == "event"
