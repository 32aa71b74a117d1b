"""PURE. The fields of a request's JSON that routing reads, as msgspec finds them.

They stand apart from `facts.py`, which is compiled: msgspec makes these classes from their annotations, and mypyc keeps
none.
"""

import itertools
from typing import Any

import msgspec


class _Once:
    """Type of a field that may appear once: msgspec calls the hook below at each appearance."""


class _Never:
    """Type of a field that may not appear."""


_ONCE = _Once()


class Fields(msgspec.Struct):
    """What is always read; everything else is skipped."""

    model: _Once = _ONCE
    stream: Any = None
    n: Any = None
    prompt_cache_key: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


class MoreFields(Fields):
    """What a policy that reads prompts, or ties sessions together, needs as well."""

    user: Any = None
    tools: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


MODELS_SEEN: list[Any] = []
"""Values of `model` that the latest decoding met; to be cleared before the next."""


def _note_model(kind: type, value: Any) -> Any:
    if kind is _Never:
        raise ValueError("'model' is written in lower case")
    MODELS_SEEN.append(value)
    return _ONCE


def _spelt_once(fields: type[msgspec.Struct]) -> Any:
    """`fields`, but no `Model` or `MODEL`: Go's servers read them as `model`, and would run what nobody looked at."""
    spellings = {"".join(letters) for letters in itertools.product(*zip("model", "MODEL", strict=True))} - {"model"}
    return msgspec.defstruct(fields.__name__, [(name, _Never, None) for name in sorted(spellings)], bases=(fields,))


decode = msgspec.json.Decoder(_spelt_once(Fields), dec_hook=_note_model).decode
decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
decode_more = msgspec.json.Decoder(_spelt_once(MoreFields), dec_hook=_note_model).decode
