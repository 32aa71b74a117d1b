"""PURE. What routing needs to know of a request's body, found without building the rest of it.

msgspec walks the JSON once and keeps only the fields below; a 256 KB prompt is skipped, not decoded.
"""

import re
from typing import Any

import msgspec

from router.model import Facts

MODEL_LIMIT = 256
_MULTIPART_MODEL = re.compile(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,256})\r\n--')


class BadBody(ValueError):
    """The body cannot be routed; the text is for the client."""


class _Once:
    """Type of a field that may appear once: msgspec calls the hook below at each appearance."""


_ONCE = _Once()


class _Fields(msgspec.Struct):
    model: _Once = _ONCE
    stream: Any = None
    prompt_cache_key: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


_models_seen: list[Any] = []


def _note_model(_kind: type, value: Any) -> Any:
    _models_seen.append(value)
    return _ONCE


_decode = msgspec.json.Decoder(_Fields, dec_hook=_note_model).decode


def read_json(body: bytes, *, want_text: bool, forwarded: str | None) -> Facts:
    """Facts of a JSON request.

    Args:
        body: The bytes as they came; they are forwarded unchanged.
        want_text: True measures the text of `messages` or `prompt`.
        forwarded: Affinity by address and agent, used when the body names no `prompt_cache_key`.

    Raises:
        BadBody: Not a JSON object, invalid UTF-8, `model` twice or not 1 to 256 printable characters.
    """
    _models_seen.clear()
    try:
        if not body.isascii():
            body.decode()
        fields = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadBody(f"the body is not a JSON object that can be read: {error}") from error
    if len(_models_seen) > 1:
        raise BadBody("'model' appears twice in the body")
    model = _models_seen[0] if _models_seen else None
    if model is not None and not (isinstance(model, str) and model.isprintable() and 0 < len(model) <= MODEL_LIMIT):
        raise BadBody(f"'model' must be a string of 1 to {MODEL_LIMIT} printable characters")
    key = fields.prompt_cache_key
    return Facts(
        model=model,
        stream=fields.stream is True,
        text_bytes=_text_bytes(fields) if want_text else None,
        affinity=f"key:{key}" if isinstance(key, str) and key else forwarded,
    )


def read_multipart(body: bytes, *, forwarded: str | None) -> Facts:
    """Facts of a form upload (audio, images): its `model` field, if there is one."""
    found = _MULTIPART_MODEL.findall(body)
    if len(found) > 1:
        raise BadBody("'model' appears twice in the form")
    model = found[0].decode("utf-8", "replace") if found else None
    return Facts(model=model, affinity=forwarded)


def forwarded_affinity(forwarded_for: bytes | None, agent: bytes | None) -> str | None:
    """First address of `X-Forwarded-For` with the `User-Agent`; None without a forwarded address."""
    if not forwarded_for:
        return None
    first = forwarded_for.split(b",", 1)[0].strip()
    return f"addr:{first.decode('latin-1')}|{(agent or b'').decode('latin-1')}" if first else None


def _text_bytes(fields: _Fields) -> int:
    """UTF-8 bytes of `messages[].content` (a string, or its parts' `text`), else of `prompt`."""
    try:
        if bytes(fields.messages):
            messages = msgspec.json.decode(fields.messages)
            return sum(_content_bytes(item.get("content")) for item in messages if isinstance(item, dict))
        return _content_bytes(msgspec.json.decode(fields.prompt)) if bytes(fields.prompt) else 0
    except (msgspec.MsgspecError, TypeError):
        return 0


def _content_bytes(content: Any) -> int:
    if isinstance(content, str):
        return len(content.encode())
    if isinstance(content, dict):
        return _content_bytes(content.get("text"))
    if isinstance(content, list):
        return sum(_content_bytes(part) for part in content)
    return 0
