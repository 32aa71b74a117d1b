"""PURE. Which requests can be continued by another replica, and what that is asked: the request, with what was said already.

    completions   prompt + what was said
    chat          messages + an assistant's message of what was said, `continue_final_message`, no `add_generation_prompt`

vLLM, SGLang and llama.cpp know both. What keeps a state that text alone does not restore is left out: choices side by side,
log probabilities, a grammar.
"""

from typing import Any, Final

import msgspec

from router.body import decode_members
from router.streams.kept import Kept

CHAT, COMPLETIONS = b"/chat/completions", b"/completions"
"""The operations that can be continued."""
_LIMITS = ("max_tokens", "max_completion_tokens", "n_predict")
_STATEFUL = (
    *(
        "logprobs",
        "top_logprobs",
        "prompt_logprobs",
        "n_probs",
        "echo",
        "suffix",
        "use_beam_search",
        "return_token_ids",
    ),
    *(
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "guided_decoding_backend",
        "structured_outputs",
    ),
    *("grammar", "json_schema", "regex", "ebnf", "structural_tag", "return_tokens_as_token_ids"),
)
"""Members of the engines' requests that rule it out, whatever they ask."""
_DEFAULT_TOKENS: Final = 16
"""Of completions without `max_tokens`, by OpenAI's description; vLLM and SGLang keep to it, llama.cpp has no limit."""
_TRUE, _FALSE, _ONE = msgspec.Raw(b"true"), msgspec.Raw(b"false"), msgspec.Raw(b"1")


def can_be_continued(body: bytes, *, chat: bool) -> bool:
    """Whether what a request asks could be continued in the middle, whatever is said."""
    try:
        members = decode_members(body)
        if any(bytes(members.get(name, _FALSE)) not in (b"null", b"false") for name in _STATEFUL):
            return False
        if any(_value(members, name) not in (None, 1) for name in ("n", "best_of")):
            return False
        form = _value(members, "response_format")
        if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
            return False
        return _last_message(members) is not None if chat else isinstance(_value(members, "prompt"), str)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def is_closing(body: bytes, kept: Kept) -> bool:
    """Whether there is nothing more to say: the text had its end, or its `max_tokens`; only its usage is to be asked."""
    limits = _limits(decode_members(body)).values()
    return kept.finished or min(limits, default=kept.tokens + 1) <= kept.tokens


def continued(body: bytes, kept: Kept) -> bytes | None:
    """What another replica is asked, so that it says what follows; None where that cannot be asked.

    Args:
        body: The request, for which `can_be_continued`.
        kept: What its stream has said; `can_go_on`.
    """
    members = decode_members(body)
    limits = _limits(members)
    if not (kept.chat or limits or kept.tokens > _DEFAULT_TOKENS):
        return None  # the engine's own limit would count anew
    if is_closing(body, kept):
        members.update(dict.fromkeys(limits or ("max_tokens",), _ONE))
        members.pop("min_tokens", None)
    else:
        members.update({name: _raw(limit - kept.tokens) for name, limit in limits.items()})
        least = _value(members, "min_tokens")
        if isinstance(least, int):
            members["min_tokens"] = _raw(max(0, least - kept.tokens))
    if kept.text and not kept.chat:
        members["prompt"] = _raw(_value(members, "prompt") + kept.text)
    elif kept.text:
        members["messages"] = _raw(_with_answer(members, kept))
        members["continue_final_message"], members["add_generation_prompt"] = _TRUE, _FALSE
    return msgspec.json.encode(members)


def _with_answer(members: dict[str, msgspec.Raw], kept: Kept) -> list[Any]:
    """The messages, the last of them the assistant's so far."""
    messages: list[Any] = msgspec.json.decode(members["messages"], type=list[msgspec.Raw])
    last = _last_message(members)
    if last is not None and last.get("role") == "assistant":
        messages[-1] = {**last, "content": last["content"] + kept.text}
    else:
        thought = {kept.thought_member: kept.thought} if kept.thought_member else {}
        messages.append({"role": "assistant", **thought, "content": kept.text})
    return messages


def _last_message(members: dict[str, msgspec.Raw]) -> dict[str, Any] | None:
    """None where nothing can follow it: engines differ in what they make of an assistant's, unless they are to go on from it."""
    messages = msgspec.json.decode(members["messages"], type=list[msgspec.Raw]) if "messages" in members else []
    last = msgspec.json.decode(messages[-1]) if messages else None
    if not isinstance(last, dict):
        return None
    goes_on = _value(members, "continue_final_message") is True and isinstance(last.get("content"), str)
    return last if last.get("role") != "assistant" or goes_on else None


def _limits(members: dict[str, msgspec.Raw]) -> dict[str, int]:
    found = {name: _value(members, name) for name in _LIMITS}
    return {name: limit for name, limit in found.items() if isinstance(limit, int) and limit > 0}


def _value(members: dict[str, msgspec.Raw], name: str) -> Any:
    return msgspec.json.decode(members[name]) if name in members else None


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
