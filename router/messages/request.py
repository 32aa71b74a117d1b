"""PURE. A request of Anthropic's Messages API as one for chat completions.

What has no counterpart there is refused by its name (docs/router.md has the table), never left out where it would change
what the model is told. Members that are in no API of Anthropic's go on unchanged: the engine knows them, or says so.
"""

from typing import Any, NamedTuple

import msgspec

from common.wire.base import JsonObject
from router.facts import BadBody

REFUSED = ("container", "mcp_servers", "thread", "compaction", "fallbacks", "n", "stream_options")
"""What another server would have to keep or run, and what would change the form of the answer."""
_NOTHING: tuple[object, ...] = (None, False, 1, [], {})
_IGNORED = (
    *("betas", "billing_policy", "cache_control", "context_management", "diagnostics", "fallback_credit_token"),
    *("inference_geo", "service_tier", "speed", "thinking", "user_profile_id", "workspace_id"),
)
"""They do not change what the model reads: a model thinks or does not, as its template has it."""
_OURS = frozenset(
    {
        *REFUSED,
        *_IGNORED,
        *("max_tokens", "messages", "metadata", "output_config", "output_format", "stop_sequences", "stream", "system"),
        *("tool_choice", "tools"),
    }
)
THOUGHTS = ("reasoning_content", "reasoning")
"""Where servers put what a model thought. The signature of a translated thinking block is the name of its member, so that it
goes back to where it came from; a strict server refuses the other."""
_BILLING = "x-anthropic-billing-header"
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
        asked = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadBody(f"the body is not a JSON object that can be read: {error}") from error
    asked = _object(asked, "the body")
    for name in REFUSED:
        if asked.get(name) not in _NOTHING:
            raise _refusal(name)
    limit, model = asked.get("max_tokens"), asked.get("model")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise BadBody("max_tokens: must be a number of tokens, at least 1")
    chat = {name: value for name, value in asked.items() if name not in _OURS}
    chat |= {"messages": _messages(asked), "max_tokens": limit}
    stops = tuple(_text(stop, f"stop_sequences.{at}") for at, stop in _each(asked, "stop_sequences"))
    if stops:
        chat["stop"] = stops
    if asked.get("stream") is True:
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    user = _object(asked.get("metadata") or {}, "metadata").get("user_id")
    if user is not None:
        chat["user"] = _text(user, "metadata.user_id")
    _put_tools(asked, chat)
    _put_output(asked, chat)
    return Chat(msgspec.json.encode(chat), model if isinstance(model, str) else "", stops)


def _messages(asked: JsonObject) -> list[JsonObject]:
    told = _said(asked.get("system") or "", "system")
    messages: list[JsonObject] = [{"role": "system", "content": told}] if told else []
    role = None
    for at, one in _each(asked, "messages"):
        where = f"messages.{at}"
        message = _object(one, where)
        role, content = message.get("role"), message.get("content")
        if role == "user":
            messages += _of_user(content, f"{where}.content")
        elif role == "assistant":
            messages.append(_of_assistant(content, f"{where}.content"))
        elif role == "system":
            messages.append({"role": "system", "content": _said(content, f"{where}.content")})
        else:
            raise BadBody(f"{where}.role: must be user, assistant or system")
    if role == "assistant":
        raise _refusal(f"messages.{at}: an answer that the model is to continue")
    return messages


def _of_user(content: Any, where: str) -> list[JsonObject]:
    """Results of tools stand right behind their calls, so they come first; their images no tool's message can hold."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    messages: list[JsonObject] = []
    parts: list[JsonObject] = []
    for at, block, kind in _blocks(content, where):
        if kind == "tool_result":
            messages.append(_of_tool(block, at, parts))
        else:
            parts.append(_part(block, kind, at))
    if parts:
        messages.append({"role": "user", "content": _joined(parts)})
    return messages


def _of_tool(block: JsonObject, where: str, images: list[JsonObject]) -> JsonObject:
    content = block.get("content")
    texts: list[str] = [content] if isinstance(content, str) else []
    if content is not None and not texts:
        for at, inner, kind in _blocks(content, f"{where}.content"):
            part = _part(inner, kind, at)
            if kind == "text":
                texts.append(part["text"])
            else:
                images.append(part)
    text = "\n".join(texts)
    if block.get("is_error") is True:
        text = f"Error: {text}"  # chat completions have no other way to say so
    return {"role": "tool", "tool_call_id": _text(block.get("tool_use_id"), f"{where}.tool_use_id"), "content": text}


def _of_assistant(content: Any, where: str) -> JsonObject:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts: list[str] = []
    calls: list[JsonObject] = []
    thoughts: dict[str, str] = {}
    for at, block, kind in _blocks(content, where):
        if kind == "text":
            texts.append(_text(block.get("text"), f"{at}.text"))
        elif kind == "tool_use":
            called = {
                "name": _text(block.get("name"), f"{at}.name"),
                "arguments": msgspec.json.encode(_object(block.get("input"), f"{at}.input")).decode(),
            }
            calls.append({"id": _text(block.get("id"), f"{at}.id"), "type": "function", "function": called})
        elif kind == "thinking":
            name = block.get("signature")
            if name in THOUGHTS:
                thoughts[name] = thoughts.get(name, "") + _text(block.get("thinking"), f"{at}.thinking")
        elif kind != "redacted_thinking":
            raise _refusal(f"{at}: a block of type {kind!r}")
    content = "".join(texts) if texts or not calls else None
    return {"role": "assistant", "content": content, **thoughts, **({"tool_calls": calls} if calls else {})}


def _part(block: JsonObject, kind: str, where: str) -> JsonObject:
    if kind == "text":
        return {"type": "text", "text": _text(block.get("text"), f"{where}.text")}
    if kind != "image":
        raise _refusal(f"{where}: a block of type {kind!r}")
    source = _object(block.get("source"), f"{where}.source")
    if source.get("type") == "url":
        url = _text(source.get("url"), f"{where}.source.url")
    elif source.get("type") == "base64":
        media = _text(source.get("media_type"), f"{where}.source.media_type")
        url = f"data:{media};base64,{_text(source.get('data'), f'{where}.source.data')}"
    else:
        raise _refusal(f"{where}.source: an image from {source.get('type')!r}")
    return {"type": "image_url", "image_url": {"url": url}}


def _joined(parts: list[JsonObject]) -> str | list[JsonObject]:
    """Text alone is one string: plain servers take nothing else."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _said(content: Any, where: str) -> str:
    """A text, or blocks of text."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for at, block, kind in _blocks(content, where):
        if kind != "text":
            raise _refusal(f"{at}: a block of type {kind!r}")
        text = _text(block.get("text"), f"{at}.text")
        if not text.startswith(_BILLING):
            texts.append(text)
    return "\n".join(texts)


def _put_tools(asked: JsonObject, chat: JsonObject) -> None:
    tools: list[JsonObject] = []
    for at, one in _each(asked, "tools"):
        tool = _object(one, f"tools.{at}")
        if tool.get("type") not in (None, "custom"):
            raise _refusal(f"tools.{at}: a tool of type {tool['type']!r}")
        function = {"name": _text(tool.get("name"), f"tools.{at}.name")}
        for name, source in (("description", "description"), ("parameters", "input_schema"), ("strict", "strict")):
            if tool.get(source) is not None:
                function[name] = tool[source]
        tools.append({"type": "function", "function": function})
    if tools:
        chat["tools"] = tools
    if asked.get("tool_choice") is None:
        return
    choice = _object(asked["tool_choice"], "tool_choice")
    kind = choice.get("type")
    if kind == "tool":
        name = _text(choice.get("name"), "tool_choice.name")
        chat["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif isinstance(kind, str) and kind in _CHOICES:
        chat["tool_choice"] = _CHOICES[kind]
    else:
        raise BadBody("tool_choice.type: must be auto, any, tool or none")
    if choice.get("disable_parallel_tool_use") is True:
        chat["parallel_tool_calls"] = False


def _put_output(asked: JsonObject, chat: JsonObject) -> None:
    config = _object(asked.get("output_config") or {}, "output_config")
    for name in config:
        if name not in ("effort", "format"):
            raise _refusal(f"output_config.{name}")
    effort, form = config.get("effort"), config.get("format") or asked.get("output_format")
    if effort is not None:
        chat["reasoning_effort"] = _EFFORTS.get(_text(effort, "output_config.effort"), effort)
    if form is not None:
        where = "output_config.format"
        form = _object(form, where)
        if form.get("type") != "json_schema":
            raise _refusal(f"{where}: the type {form.get('type')!r}")
        schema = _object(form.get("schema"), f"{where}.schema")
        wanted = {"name": "output", "schema": schema, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": wanted}


def _refusal(what: str) -> BadBody:
    return BadBody(f"{what} cannot be translated, and the servers of this model have no /v1/messages of their own")


def _each(asked: JsonObject, name: str) -> list[tuple[int, Any]]:
    values = asked.get(name)
    if values is None and name != "messages":
        return []
    if not isinstance(values, list):
        raise BadBody(f"{name}: must be a list")
    return list(enumerate(values))


def _blocks(content: Any, where: str) -> list[tuple[str, JsonObject, str]]:
    """Each block with where it stands and its type."""
    if not isinstance(content, list):
        raise BadBody(f"{where}: must be a text or a list of blocks")
    blocks = [(f"{where}.{at}", _object(block, f"{where}.{at}")) for at, block in enumerate(content)]
    return [(at, block, _text(block.get("type"), f"{at}.type")) for at, block in blocks]


def _object(value: Any, where: str) -> JsonObject:
    if not isinstance(value, dict):
        raise BadBody(f"{where}: must be an object")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadBody(f"{where}: must be a text")
    return value
