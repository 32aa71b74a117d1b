"""Logs: an event name and fields; JSON lines when not at a terminal; secrets and prompts never leave.

Ids that join lines (request, replica) are bound with `structlog.contextvars`. Standard-library loggers (aiohttp,
asyncio) end in the same stream with the same fields.
"""

import logging
import re
import sys
from typing import Any

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

from common import systemd

FIELD_LIMIT_BYTES = 4096
"""Longer strings are cut; a traceback still fits, a prompt that slipped in does not."""

_SECRET_NAME = re.compile(r"authorization|api[-_]?key|token$|secret|password|cookie|credential", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"(?i)\b(bearer\s+)[^\s\"']+|(?<=://)[^/@\s]+:[^/@\s]+(?=@)|\bsk-[A-Za-z0-9_-]{6,}")
_PROMPT_NAMES = frozenset({"prompt", "messages", "input", "body"})
_HIDDEN = "[hidden]"


def setup(service: str, *, level: str = "INFO", json: bool | None = None) -> None:
    """Send every log line of this process to standard error.

    Args:
        service: Goes into every line (`registry`, `router`, `babysitter` …).
        level: A level name of the standard library; unknown names count as INFO.
        json: None chooses JSON unless standard error is a terminal.
    """
    as_json = not sys.stderr.isatty() if json is None else json
    in_journal = systemd.has_journal()
    threshold = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lambda _logger, _method, event: {"service": service, **event},
        structlog.processors.format_exc_info,
        redact,
    ]
    render: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(serializer=_to_json) if as_json else structlog.dev.ConsoleRenderer()
    )

    def last(logger: WrappedLogger, method: str, event: EventDict) -> str:
        priority = systemd.priority(str(event.get("level", method))) if in_journal else ""
        return f"{priority}{render(logger, method, event)!s}"

    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    logging.basicConfig(handlers=[handler], level=threshold, force=True)


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Structlog processor: hide secrets and prompts, cut long strings."""
    return {name: _clean(name, value) for name, value in event.items()}


def _clean(name: str, value: Any) -> Any:
    if _SECRET_NAME.search(name) or name in _PROMPT_NAMES:
        return _HIDDEN
    if isinstance(value, dict):
        return {str(inner): _clean(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(name, item) for item in value]
    if isinstance(value, str):
        text = _SECRET_VALUE.sub(lambda match: (match.group(1) or "") + _HIDDEN, value)
        return text if len(text) <= FIELD_LIMIT_BYTES else text[:FIELD_LIMIT_BYTES] + "…"
    return value


def _to_json(event: EventDict, **_options: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
