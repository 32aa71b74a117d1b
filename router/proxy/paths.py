"""PURE. Which paths are proxied, and which form of them a replica gets (docs/contract.md 2, docs/architecture.md).

An exact match against a fixed table: nothing of the client's path is ever joined, decoded or normalised, so dot
segments, `%2e`, `//host` and absolute targets cannot lead anywhere (docs/faults.md R58 to R66).
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final
from urllib.parse import unquote_to_bytes


class EndMark(Enum):
    """What ends a complete event stream of a path (docs/faults.md D10)."""

    DONE = "done"
    RESPONSES = "responses"
    MESSAGES = "messages"
    NONE = "none"


class Dialect(Enum):
    """The form in which a path's clients expect an error."""

    OPENAI = "openai"
    RESPONSES = "responses"
    """OpenAI's, but for events of a stream."""
    ANTHROPIC = "anthropic"


@dataclass(frozen=True)
class Operation:
    """One proxied path.

    `prefixed`: OpenAI's own, which a replica may serve under `/v1`, bare, or both. `by_engine`: the engine answers; where a
    server's front answers alone, the answer says nothing of the engine. `repeatable`: asking a second server does no harm;
    false where the first may have stored something. `response`: the stored one that the path names. `plain`: a request is
    neither about a stored response nor ever translated, as nearly all are.
    """

    name: bytes
    prefixed: bool
    end_mark: EndMark = EndMark.NONE
    by_engine: bool = True
    repeatable: bool = True
    websocket: bool = False
    """It takes a WebSocket, and nothing else."""
    methods: tuple[bytes, ...] = (b"POST",)
    response: str | None = None
    plain: bool = True


_ANTHROPIC = (b"/v1/messages", b"/messages")
RESPONSES: Final = b"/responses"
_RESPONSES = (b"/v1" + RESPONSES, RESPONSES)
STORED: dict[bytes, tuple[bytes, ...]] = {b"": (b"GET", b"DELETE"), b"/cancel": (b"POST",), b"/input_items": (b"GET",)}
"""What may be asked of a stored response, by what follows its id."""
_STORED_PATH = re.compile(rb"(?:/v1)?(/responses/(resp_[A-Za-z0-9_=-]{1,250})(/[a-z_]+)?)")
"""An id begins as OpenAI's do: `/responses/compact` is none."""


_OPENAI = {
    b"/chat/completions": EndMark.DONE,
    b"/chat/completions/batch": EndMark.NONE,
    b"/chat/completions/render": EndMark.NONE,
    b"/completions": EndMark.DONE,
    b"/completions/render": EndMark.NONE,
    RESPONSES: EndMark.RESPONSES,
    b"/messages": EndMark.MESSAGES,
    b"/messages/count_tokens": EndMark.NONE,
    b"/embeddings": EndMark.NONE,
    b"/rerank": EndMark.NONE,
    b"/moderations": EndMark.NONE,
    b"/audio/speech": EndMark.NONE,
    b"/audio/transcriptions": EndMark.NONE,
    b"/audio/translations": EndMark.NONE,
    b"/images/generations": EndMark.NONE,
    b"/images/edits": EndMark.NONE,
    b"/images/variations": EndMark.NONE,
}
_WEBSOCKETS = (b"/realtime",)
_OTHERS = (
    b"/score",
    b"/classify",
    b"/pooling",
    b"/tokenize",
    b"/detokenize",
)
_LLAMA_CPP = (b"/completion", b"/infill")
"""Its own calls. `/props` and `/slots` show other clients' prompts, so they are for `proxy_paths`."""
_BY_THE_FRONT = frozenset(
    {
        b"/chat/completions/render",
        b"/completions/render",
        b"/messages/count_tokens",
        b"/tokenize",
        b"/detokenize",
    }
)
OWN_USAGE = b"/v1/usage"
KEY_FIELD = b"x-svc-key"
"""By which a worker tells the control plane whose key let a request in."""
SEES_FIELD = b"x-svc-sees"
"""And that this key is no administrator's: it sees its own use only."""
CONTROL = frozenset(
    {
        *(b"/", b"/health", b"/status", b"/services", b"/stats", b"/metrics", b"/traffic", b"/openapi.json"),
        *(b"/metrics/engines", b"/models", b"/v1/models", b"/ready", OWN_USAGE),
    }
)
MODEL_TREES = (b"/v1/models/", b"/models/")
ADMIN_TREES = (b"/admin/", b"/api/v1/")
"""What changes the fleet, or tells of it what only its owners should know."""
_CONTROL_TREES = (*MODEL_TREES, *ADMIN_TREES)


def _table() -> dict[bytes, Operation]:
    table: dict[bytes, Operation] = {}
    for name, end_mark in _OPENAI.items():
        table[name] = table[b"/v1" + name] = Operation(
            name,
            prefixed=True,
            end_mark=end_mark,
            by_engine=name not in _BY_THE_FRONT,
            repeatable=name != RESPONSES,
            plain=name != RESPONSES and not name.startswith(b"/messages"),
        )
    for name in _WEBSOCKETS:
        table[name] = table[b"/v1" + name] = Operation(name, prefixed=True, by_engine=False, websocket=True)
    for name in _OTHERS:
        by_engine = name not in _BY_THE_FRONT
        table[name] = Operation(name, prefixed=False, by_engine=by_engine)
        table[b"/v1" + name] = Operation(b"/v1" + name, prefixed=False, by_engine=by_engine)
    for name in _LLAMA_CPP:
        table[name] = Operation(name, prefixed=False)
    table[b"/v2/rerank"] = Operation(b"/v2/rerank", prefixed=False)
    return table


PROXIED = _table()


def stored_response(path: bytes) -> Operation | None:
    """What a path means that names a stored response; None for any other."""
    found = _STORED_PATH.fullmatch(path)
    if found is None:
        return None
    methods = STORED.get(found[3] or b"")
    if methods is None:
        return None
    response = found[2].decode()
    return Operation(
        found[1], prefixed=True, by_engine=False, repeatable=False, methods=methods, response=response, plain=False
    )


_LOADS_ADAPTERS = frozenset({b"load_lora_adapter", b"unload_lora_adapter", b"adapters", b"lora-adapters"})
"""Parts of the paths by which vLLM, SGLang, vLLM's SageMaker side and llama.cpp load adapters, from wherever the body says."""


def loads_adapters(path: bytes) -> bool:
    """True for an engine's own call for LoRA adapters, however it is escaped: only babysitters make those (docs/adr/0012)."""
    return not _LOADS_ADAPTERS.isdisjoint(unquote_to_bytes(path).lower().split(b"/"))


_STEERS_ENGINE = frozenset({b"sleep", b"wake_up", b"is_sleeping", b"collective_rpc"})
"""Parts of the paths by which vLLM (VLLM_SERVER_DEV_MODE) sleeps, wakes, and has its workers call whatever the body names."""


def steers_engine(path: bytes) -> bool:
    """True for an engine's own call for sleeping and waking, however it is escaped: only babysitters make those."""
    return not _STEERS_ENGINE.isdisjoint(unquote_to_bytes(path).lower().split(b"/"))


def is_control(path: bytes) -> bool:
    """True for a path that the router answers itself."""
    return path in CONTROL or path.startswith(_CONTROL_TREES)


def dialect_of(path: bytes) -> Dialect:
    """The dialect of errors on `path`, whether it is served or not."""
    if path.startswith(_ANTHROPIC):
        return Dialect.ANTHROPIC
    return Dialect.RESPONSES if path.startswith(_RESPONSES) else Dialect.OPENAI


def upstream_path(path: bytes, operation: Operation | None, api_prefix: str | None) -> bytes:
    """The path to ask a replica for, given the form it serves (None: not known, so as the client wrote it)."""
    if operation is None or not operation.prefixed or api_prefix is None:
        return path
    return api_prefix.encode() + operation.name
