"""PURE. A request of Anthropic's Messages API as one for chat completions.

What has no counterpart there is refused by its name (docs/router.md has the table), never left out where it would change
what the model is told. Members that are in no API of Anthropic's go on unchanged: the engine knows them, or says so.
"""

from typing import Final, NamedTuple

import msgspec

from common.wire.base import JsonObject
from router.facts import BadBody
from router.messages.asked import (
    Asked,
    Assistant,
    Image,
    RedactedThinking,
    Text,
    Thinking,
    Tool,
    ToolChoice,
    ToolResult,
    ToolUse,
    Url,
    User,
)

REFUSED = ("container", "mcp_servers", "thread", "compaction", "fallbacks", "n", "stream_options")
"""What another server would have to keep or run, and what would change the form of the answer."""
_NOTHING: tuple[object, ...] = (None, False, 1, [], {})
_IGNORED = (
    *("betas", "billing_policy", "cache_control", "context_management", "diagnostics", "fallback_credit_token"),
    *("inference_geo", "service_tier", "speed", "thinking", "user_profile_id", "workspace_id"),
)
"""They do not change what the model reads: a model thinks or does not, as its template has it."""
_OURS = frozenset({*REFUSED, *_IGNORED, *Asked.__struct_fields__})
THOUGHTS = ("reasoning_content", "reasoning")
"""Where servers put what a model thought. The signature of a translated thinking block is the name of its member, so that it
goes back to where it came from; a strict server refuses the other."""
_BILLING: Final = "x-anthropic-billing-header"
"""Begins a block that Claude Code puts first in `system`: another hash in every request, which no prefix cache survives."""
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = {"max": "high", "xhigh": "high"}


class Chat(NamedTuple):
    """The request for chat completions; `model` and `stops` are what its answer is read with."""

    body: bytes
    model: str
    stops: tuple[str, ...]


def to_chat(body: bytes) -> Chat:
    """`body` for `/v1/chat/completions`.

    Raises:
        BadBody: It cannot be read, or has what cannot be translated; the field is named.
    """
    try:
        members = msgspec.json.decode(body, type=JsonObject)
        asked = msgspec.convert(members, Asked)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadBody(f"the body is not a JSON object that can be read: {error}") from error
    for name in REFUSED:
        if members.get(name) not in _NOTHING:
            raise _refusal(name)
    chat = {name: value for name, value in members.items() if name not in _OURS}
    chat |= {"messages": _messages(asked), "max_tokens": asked.max_tokens}
    if asked.stop_sequences:
        chat["stop"] = asked.stop_sequences
    if asked.stream:
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    if asked.metadata is not None and asked.metadata.user_id is not None:
        chat["user"] = asked.metadata.user_id
    if asked.tools:
        chat["tools"] = [_tool(tool) for tool in asked.tools]
    if asked.tool_choice is not None:
        chat |= _choice(asked.tool_choice)
    model = members.get("model")
    stops = tuple(asked.stop_sequences or ())
    return Chat(msgspec.json.encode(chat | _output(asked)), model if isinstance(model, str) else "", stops)


def _messages(asked: Asked) -> list[JsonObject]:
    told = _said(asked.system or "")
    messages: list[JsonObject] = [{"role": "system", "content": told}] if told else []
    for message in asked.messages:
        if isinstance(message, User):
            messages += _of_user(message.content)
        elif isinstance(message, Assistant):
            messages.append(_of_assistant(message.content))
        else:
            messages.append({"role": "system", "content": _said(message.content)})
    if asked.messages and isinstance(asked.messages[-1], Assistant):
        raise _refusal("an answer that the model is to continue (a last message of the assistant)")
    return messages


def _said(content: str | list[Text]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(block.text for block in content if not block.text.startswith(_BILLING))


def _of_user(content: str | list[Text | Image | ToolResult]) -> list[JsonObject]:
    """Results of tools stand right behind their calls, so they come first; their images no tool's message can hold."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    messages: list[JsonObject] = []
    parts: list[Text | Image] = []
    for block in content:
        if isinstance(block, ToolResult):
            inner = [Text(block.content)] if isinstance(block.content, str) else block.content or []
            text = "\n".join(part.text for part in inner if isinstance(part, Text))
            if block.is_error:
                text = f"Error: {text}"  # chat completions have no other way to say so
            messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": text})
            parts += [part for part in inner if isinstance(part, Image)]
        else:
            parts.append(block)
    if parts:
        messages.append({"role": "user", "content": _joined(parts)})
    return messages


def _joined(parts: list[Text | Image]) -> str | list[JsonObject]:
    """Text alone is one string: plain servers take nothing else."""
    texts = [part.text for part in parts if isinstance(part, Text)]
    return "\n".join(texts) if len(texts) == len(parts) else [_part(part) for part in parts]


def _part(block: Text | Image) -> JsonObject:
    if isinstance(block, Text):
        return {"type": "text", "text": block.text}
    source = block.source
    url = source.url if isinstance(source, Url) else f"data:{source.media_type};base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _of_assistant(content: str | list[Text | ToolUse | Thinking | RedactedThinking]) -> JsonObject:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts = [block.text for block in content if isinstance(block, Text)]
    message: JsonObject = {"role": "assistant", "content": "".join(texts)}
    for block in content:
        if isinstance(block, Thinking) and block.signature in THOUGHTS:
            message[block.signature] = message.get(block.signature, "") + block.thinking
    calls = [_call(block) for block in content if isinstance(block, ToolUse)]
    if calls:
        message["tool_calls"] = calls
        if not texts:
            message["content"] = None
    return message


def _call(block: ToolUse) -> JsonObject:
    called = {"name": block.name, "arguments": msgspec.json.encode(block.input).decode()}
    return {"id": block.id, "type": "function", "function": called}


def _tool(tool: Tool) -> JsonObject:
    about = {"description": tool.description, "parameters": tool.input_schema, "strict": tool.strict}
    told = {name: value for name, value in about.items() if value is not None}
    return {"type": "function", "function": {"name": tool.name, **told}}


def _choice(choice: ToolChoice) -> JsonObject:
    named = {"type": "function", "function": {"name": choice.name}}
    told: JsonObject = {"tool_choice": _CHOICES.get(choice.type, named)}
    return {**told, "parallel_tool_calls": False} if choice.disable_parallel_tool_use else told


def _output(asked: Asked) -> JsonObject:
    told: JsonObject = {}
    config = asked.output_config
    effort, form = (config.effort, config.format) if config is not None else (None, None)
    if effort is not None:
        told["reasoning_effort"] = _EFFORTS.get(effort, effort)
    form = form or asked.output_format
    if form is not None:
        wanted = {"name": "output", "schema": form.schema, "strict": True}
        told["response_format"] = {"type": "json_schema", "json_schema": wanted}
    return told


def _refusal(what: str) -> BadBody:
    return BadBody(
        f"{what}: this cannot be translated, and the servers of this model have no /v1/messages of their own"
    )
