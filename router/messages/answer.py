"""PURE. A whole answer of chat completions as a message of Anthropic's, and any server's error as one of Anthropic's."""

from typing import Any, Final

import msgspec

from common.wire.base import JsonObject
from router.messages.completion import Call, Choice, Completion, decode, stop_of, text_of, thought_of, usage_of
from router.messages.request import Chat
from router.proxy import answers
from router.proxy.paths import Dialect

_TEXT_LIMIT: Final = 2000
"""Of an error that is no JSON."""


class Untranslatable(ValueError):
    """An answer that is none of chat completions."""


def to_message(content: bytes, chat: Chat, request_id: str) -> bytes:
    """The message for an answer with status 200.

    Raises:
        Untranslatable: It is no chat completion.
    """
    try:
        completion = decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Untranslatable("the replica's answer is no chat completion") from error
    choice = next((one for one in completion.choices or () if one.message is not None), None)
    if choice is None or choice.message is None:
        raise Untranslatable("the replica's answer has no choice")
    said = choice.message
    blocks: list[JsonObject] = []
    thought, member = thought_of(said)
    if thought:
        blocks.append({"type": "thinking", "thinking": thought, "signature": member})
    text = text_of(said)
    calls = said.tool_calls or []
    if text or not (calls or blocks):
        blocks.append({"type": "text", "text": text})
    blocks += [_tool_use(call, f"{request_id}_{at}", choice) for at, call in enumerate(calls)]
    told = stop_of(choice, chat.stops, called=bool(calls))
    return msgspec.json.encode({**start_of(completion, chat, request_id), "content": blocks, **told})


def start_of(completion: Completion, chat: Chat, request_id: str) -> JsonObject:
    """A message of which nothing is known yet."""
    return {
        "id": completion.id if isinstance(completion.id, str) and completion.id else f"msg_{request_id}",
        "type": "message",
        "role": "assistant",
        "model": completion.model if isinstance(completion.model, str) else chat.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_of(completion.usage),
    }


def _tool_use(call: Call, otherwise: str, choice: Choice) -> JsonObject:
    function = call.function
    given = function.arguments if function is not None else None
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given) if given.strip() else {}
        except (msgspec.MsgspecError, RecursionError) as error:
            if choice.finish_reason != "length":
                raise Untranslatable("a tool call's arguments are no JSON") from error
            given = {}  # cut off, as `max_tokens` will say
    if function is None or function.name is None or not isinstance(given, dict | None):
        raise Untranslatable("a tool call has no name, or arguments that are no object")
    return {"type": "tool_use", "id": call.id or f"toolu_{otherwise}", "name": function.name, "input": given or {}}


def to_error(status: int, content: bytes) -> bytes:
    """An error's body, whatever its own form: OpenAI's, FastAPI's, older ones of vLLM, a text."""
    try:
        told = msgspec.json.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        told = content[:_TEXT_LIMIT].decode("utf-8", "replace").strip()
    code, message = told_by(told)
    return answers.error_body(status, code, message or f"the replica answered {status}", Dialect.ANTHROPIC)


def told_by(error: Any) -> tuple[str, str]:
    """Code and message of an error."""
    inner = error.get("error") if isinstance(error, dict) and error.get("error") else error
    if not isinstance(inner, dict):
        return "upstream_error", inner if isinstance(inner, str) else ""
    code = inner.get("code") or inner.get("type")
    message = inner.get("message") or inner.get("detail") or ""
    if not isinstance(message, str):
        message = msgspec.json.encode(message).decode()
    return str(code) if isinstance(code, str | int) else "upstream_error", message
