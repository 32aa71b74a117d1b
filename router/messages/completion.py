"""PURE. What is read of chat completions, of a whole answer and of a stream's events, and what that means in Anthropic's words.

Not compiled: msgspec makes these classes from their annotations, and mypyc keeps none.
"""

from typing import Any

import msgspec

from router.messages.request import THOUGHTS


class Function(msgspec.Struct):
    """A call's function, or a piece of it."""

    name: str | None = None
    arguments: Any = None


class Call(msgspec.Struct):
    """A call of a tool, or a piece of it."""

    id: str | None = None
    index: int | None = None
    function: Function | None = None


class Said(msgspec.Struct):
    """A message, or a piece of it."""

    content: Any = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[Call] | None = None


class Choice(msgspec.Struct):
    """A choice; vLLM tells which text stopped it in `stop_reason`, SGLang in `matched_stop`."""

    index: int | None = 0
    message: Said | None = None
    delta: Said | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    matched_stop: Any = None


class Details(msgspec.Struct):
    """Of a prompt's tokens."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """Tokens that a request took."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Completion(msgspec.Struct):
    """An answer, an event of a stream, or an error."""

    id: Any = None
    model: Any = None
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    object: Any = None
    type: Any = None


decode = msgspec.json.Decoder(Completion).decode
_END_TURN = "end_turn"
_REASONS = {"length": "max_tokens", "content_filter": "refusal"}


def text_of(said: Said) -> str:
    """What a message says; some servers send parts."""
    content = said.content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    return (content if isinstance(content, str) else "") or said.refusal or ""


def thought_of(said: Said) -> tuple[str, str]:
    """What was thought, and under which name the server tells it."""
    for name, value in zip(THOUGHTS, (said.reasoning_content, said.reasoning), strict=True):
        if isinstance(value, str) and value:
            return value, name
    return "", ""


def usage_of(usage: Usage | None) -> dict[str, int]:
    """Anthropic counts what came from the cache apart. Zeros where the server counts nothing."""
    if usage is None:
        return {"input_tokens": 0, "output_tokens": 0}
    details = usage.prompt_tokens_details
    cached = details.cached_tokens if details is not None else None
    told = {"input_tokens": max(0, (usage.prompt_tokens or 0) - (cached or 0))}
    if cached is not None:
        told["cache_read_input_tokens"] = cached
    return {**told, "output_tokens": usage.completion_tokens or 0}


def stop_of(choice: Choice | None, stops: tuple[str, ...], *, called: bool) -> dict[str, str | None]:
    """Why it ended: `stop_reason` and `stop_sequence`.

    Servers say `stop` for a call that was asked for by name, and for a text that is to stop it: which one, few tell.

    Args:
        choice: The choice that has a `finish_reason`.
        stops: The texts that were to stop it.
        called: A tool was called. A text that cut its call short comes first.
    """
    reason = choice.finish_reason if choice is not None else None
    told: dict[str, str | None] = {"stop_reason": _REASONS.get(reason or "", _END_TURN), "stop_sequence": None}
    if told["stop_reason"] != _END_TURN:
        return told
    for matched in (choice.stop_reason, choice.matched_stop) if choice is not None and reason != "tool_calls" else ():
        if isinstance(matched, str) and matched in stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": matched}
    if called:
        told["stop_reason"] = "tool_use"
    return told
