"""PURE. Which calls a replica answers, for calls that name no model: what its record declares, else what it tells of itself.

A call is known by its path without `/v1`. `metadata.serves` lists kinds (below) or paths. An engine tells its paths in
`/openapi.json` (vLLM, SGLang, whatever is made with FastAPI); llama.cpp has no such page, but signs its models. Of any other
engine nothing is known.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import msgspec

from router.proxy.paths import PROXIED

GENERATE = (
    "/chat/completions",
    "/chat/completions/batch",
    "/chat/completions/render",
    "/completions",
    "/completions/render",
    "/responses",
    "/messages",
    "/messages/count_tokens",
    "/tokenize",
    "/detokenize",
)
KINDS = {
    "generate": GENERATE,
    "embed": ("/embeddings", "/pooling", "/tokenize", "/detokenize"),
    "rank": ("/rerank", "/score", "/tokenize", "/detokenize"),
    "classify": ("/classify", "/tokenize", "/detokenize"),
    "moderate": ("/moderations",),
    "transcribe": ("/audio/transcriptions", "/audio/translations"),
    "speak": ("/audio/speech",),
    "realtime": ("/realtime",),
    "draw": ("/images/generations", "/images/edits", "/images/variations"),
}
"""What may be declared instead of paths."""
LLAMA_CPP = (*GENERATE, "/embeddings", "/embedding", "/rerank", "/completion", "/infill", "/props", "/slots")
_LLAMA_CPP_SIGNS: Final = "llamacpp"
_PATHS_LIMIT: Final = 256
_MESSAGES, _CHATS = "/messages", "/chat/completions"


def call_of(path: str) -> str:
    """What a path is known by: `/v1/chat/completions` and `/chat/completions` are one call."""
    for prefix in ("/v1/", "/v2/"):
        if path.startswith(prefix):
            return path[len(prefix) - 1 :]
    return path


def declared(serves: Sequence[object] | str | None) -> tuple[str, ...] | None:
    """The calls of `metadata.serves` (a list, or one); None when it says nothing that is known."""
    calls: list[str] = []
    for entry in [serves] if isinstance(serves, str) else serves or ():
        if isinstance(entry, str):
            calls += [call_of(entry)] if entry.startswith("/") else KINDS.get(entry.lower(), ())
    return tuple(dict.fromkeys(calls)) or None


def has_messages(
    setting: str | None, serves: Sequence[object] | str | None, learned_calls: Collection[str] | None
) -> bool | None:
    """Whether a replica has Anthropic's `/v1/messages`; None where nothing says so.

    Args:
        setting: `metadata.messages`, which decides.
        serves: `metadata.serves`; only a path says it, a kind is meant roughly.
        learned_calls: What it tells itself, which is exact where it tells of chats.
    """
    if setting is not None:
        return setting == "native"
    paths = [
        call_of(entry) for entry in ([serves] if isinstance(serves, str) else serves or ()) if isinstance(entry, str)
    ]
    for calls in (paths, learned_calls or ()):
        if _MESSAGES in calls:
            return True
        if _CHATS in calls:
            return False
    return None


def learned(page: bytes, models: bytes, relevant: Collection[str] | None) -> tuple[str, ...]:
    """The calls that a replica's `/openapi.json`, else its list of models, tells of; none when they say nothing.

    Args:
        page: The body of `GET /openapi.json`, whatever it is.
        models: That of its models call.
        relevant: The calls that matter; None for all (at most 256).
    """
    paths = _member(page, "paths")
    if isinstance(paths, dict) and paths:
        return _some(map(call_of, paths), relevant)
    items = _member(models, "data")
    owners = {item.get("owned_by") for item in items if isinstance(item, dict)} if isinstance(items, list) else set()
    return _some(LLAMA_CPP, relevant) if owners == {_LLAMA_CPP_SIGNS} else ()


def calls_that_matter(proxy_paths: Iterable[str]) -> frozenset[str] | None:
    """The calls that the router passes on; None for all."""
    extra = frozenset(map(call_of, proxy_paths))
    return None if "*" in extra else extra | {call_of(path.decode()) for path in PROXIED}


def _some(calls: Iterable[str], relevant: Collection[str] | None) -> tuple[str, ...]:
    some = dict.fromkeys(call for call in calls if relevant is None or call in relevant)
    return tuple(some)[:_PATHS_LIMIT]


def _member(content: bytes, name: str) -> Any:
    try:
        value = msgspec.json.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return value.get(name) if isinstance(value, dict) else None
