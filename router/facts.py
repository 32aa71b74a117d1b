"""PURE. What routing needs to know of a request's body, found without building the rest of it.

msgspec walks the JSON once and keeps only the fields below; a 256 KB prompt is skipped, not decoded.
"""

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from router.body import BodyReader, Fields, MoreFields, decode_members
from router.model import Facts
from router.policy.blocks import SMALLEST_BYTES, chain, seed_of

MODEL_LIMIT: Final = 256
_ID = re.compile(r"[A-Za-z0-9_=-]{1,256}")
_READER: Final = BodyReader()
"""A worker reads in one thread, and has done with a body before it reads the next."""


class BadBody(ValueError):
    """The body cannot be routed; the text is for the client."""


class PolicyNeeds(NamedTuple):
    """Who is asked, and what of the request may matter to the answer."""

    prompt: Callable[[str | None, str | None], bool]
    """Whether the model's policy (or the one asked for) reads prompts."""
    policy: str | None
    """The policy that the client asked for, where it may."""
    session: str | None
    """The session that a header names."""
    sessions: bool
    """Whether anybody ties sessions together."""


def checked_model(model: Any) -> str:
    """`model`, which can be the name of one.

    Raises:
        BadBody: It is not 1 to 256 printable characters.
    """
    if not (isinstance(model, str) and model.isprintable() and 0 < len(model) <= MODEL_LIMIT):
        raise BadBody(f"'model' must be a string of 1 to {MODEL_LIMIT} printable characters")
    return model


def read_json(body: bytes, *, want_text: bool, forwarded: str | None, needs: PolicyNeeds | None = None) -> Facts:
    """Facts of a JSON request.

    Args:
        body: The bytes as they came; they are forwarded unchanged.
        want_text: True measures the text of `messages` or `prompt`.
        forwarded: Affinity by address and agent, used when the body names no `prompt_cache_key`.
        needs: What policies need beside; None when no policy needs anything.

    Raises:
        BadBody: Not a JSON object, invalid UTF-8, `model` twice, in another case, or not 1 to 256 printable characters.
    """
    try:
        if not body.isascii():
            body.decode()
        fields = _READER.read(body, more=needs is not None)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadBody(f"the body is not a JSON object that can be read: {error}") from error
    models = _READER.models
    if len(models) > 1:
        raise BadBody("'model' appears twice in the body")
    model = checked_model(models[0]) if models and models[0] is not None else None
    key = fields.prompt_cache_key
    affinity = f"key:{key}" if isinstance(key, str) and key else forwarded
    text_bytes = _text_bytes(fields) if want_text else None
    previous = _previous(fields.previous_response_id) if fields.previous_response_id is not None else None
    if needs is None:
        return Facts(
            model=model,
            stream=fields.stream is True,
            choices=_choices(fields) if fields.stream is True else 1,
            text_bytes=text_bytes,
            affinity=affinity,
            prompt_bytes=len(body),
            previous_response=previous,
        )
    assert isinstance(fields, MoreFields)  # noqa: S101 - decoded as such above
    prompt_bytes, blocks = _prompt(fields, model) if needs.prompt(model, needs.policy) else (len(body), ())
    return Facts(
        model=model,
        stream=fields.stream is True,
        choices=_choices(fields) if fields.stream is True else 1,
        text_bytes=text_bytes,
        affinity=affinity,
        prompt_bytes=prompt_bytes,
        blocks=blocks,
        session=_session(fields, needs.session, affinity) if needs.sessions else None,
        policy=needs.policy,
        previous_response=previous,
    )


def _previous(value: Any) -> str | None:
    """An id that can stand in a path; any other is the engine's to judge."""
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def _choices(fields: Fields) -> int:
    """Of each prompt `n`; a list of numbers is one prompt, any other list has one in each member."""
    count = fields.n if isinstance(fields.n, int) and fields.n > 0 else 1
    if bytes(memoryview(fields.prompt)[:1]) == b"[":
        prompts = msgspec.json.decode(fields.prompt)
        if prompts and not isinstance(prompts[0], int):
            count *= len(prompts)
    return count


def _prompt(fields: MoreFields, model: str | None) -> tuple[int, tuple[int, ...]]:
    """Size and hashed beginning of the prompt as it stands in the body; what goes before the messages counts first."""
    text: Any = memoryview(fields.messages) or memoryview(fields.prompt) or memoryview(fields.input)
    before = [bytes(part) for part in (fields.tools, fields.system, fields.instructions) if memoryview(part)]
    if before:
        text = b"".join([*before, text])
    if len(text) < SMALLEST_BYTES:
        return len(text), ()
    return len(text), chain(text, seed_of((model or "").encode()))


def _session(fields: MoreFields, named: str | None, affinity: str | None) -> str | None:
    """Header, then `prompt_cache_key`, `user`, address and agent."""
    if named is not None:
        return f"id:{named}"
    if affinity is not None and affinity.startswith("key:"):
        return affinity
    return f"user:{fields.user}" if isinstance(fields.user, str) and fields.user else affinity


def stores(body: bytes) -> bool:
    """Whether the JSON object `body` asks for its answer to be stored (`store`)."""
    return b'"store"' in body and bytes(decode_members(body).get("store", b"false")) not in (b"false", b"null")


def with_model(body: bytes, model: str) -> bytes:
    """The JSON object `body` with another `model`; everything else stays as it was written.

    Raises:
        BadBody: It cannot be read.
    """
    try:
        members = decode_members(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadBody(f"the body is not a JSON object that can be read: {error}") from error
    members["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(members)


def with_usage(body: bytes) -> bytes | None:
    """The JSON object `body` with `stream_options.include_usage`; None when the client asks for it, or has options that are none."""
    try:
        members = decode_members(body)
        told = bytes(members.get("stream_options", b"null"))
        options = {} if told == b"null" else decode_members(told)
    except (msgspec.MsgspecError, RecursionError):
        return None
    if bytes(options.get("include_usage", b"false")) == b"true":
        return None
    options["include_usage"] = msgspec.Raw(b"true")
    members["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return msgspec.json.encode(members)


def forwarded_affinity(forwarded_for: bytes | None, agent: bytes | None) -> str | None:
    """First address of `X-Forwarded-For` with the `User-Agent`; None without a forwarded address."""
    if not forwarded_for:
        return None
    first = forwarded_for.split(b",", 1)[0].strip()
    return f"addr:{first.decode('latin-1')}|{(agent or b'').decode('latin-1')}" if first else None


def _text_bytes(fields: Fields) -> int:
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
