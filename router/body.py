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
    previous_response_id: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


class MoreFields(Fields):
    """What a policy that reads prompts, or ties sessions together, needs as well."""

    user: Any = None
    tools: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


def _spelt_once(fields: type[msgspec.Struct]) -> Any:
    """`fields`, but no `Model` or `MODEL`: Go's servers read them as `model`, and would run what nobody looked at."""
    spellings = {"".join(letters) for letters in itertools.product(*zip("model", "MODEL", strict=True))} - {"model"}
    return msgspec.defstruct(fields.__name__, [(name, _Never, None) for name in sorted(spellings)], bases=(fields,))


decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class BodyReader:
    """Reads one body after the other; `models` holds each value of `model` that stands in the latest."""

    def __init__(self) -> None:
        self.models: list[Any] = []
        self._decode = msgspec.json.Decoder(_spelt_once(Fields), dec_hook=self._note_model).decode
        self._decode_more = msgspec.json.Decoder(_spelt_once(MoreFields), dec_hook=self._note_model).decode

    def read(self, body: bytes, *, more: bool) -> Any:
        """The fields of `body`: `MoreFields` where `more` are needed, else `Fields`.

        Raises:
            msgspec.MsgspecError: It is no JSON object, or a field is not what it must be.
        """
        self.models.clear()
        return self._decode_more(body) if more else self._decode(body)

    def _note_model(self, kind: type, value: Any) -> Any:
        if kind is _Never:
            raise ValueError("'model' is written in lower case")
        self.models.append(value)
        return _ONCE
