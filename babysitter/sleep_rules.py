"""PURE. How a server is put to sleep and woken: the calls, as the settings write them, and vLLM's own."""

import re
from dataclasses import dataclass

import msgspec

_CALL = re.compile(r"(GET|POST|PUT|DELETE) (/[!-~]*)(?: (\S.*))?")
VLLM_SLEEP = {1: ("POST /sleep?level=1",), 2: ("POST /sleep?level=2",)}
VLLM_WAKE = {
    1: ("POST /wake_up",),
    2: (
        "POST /wake_up?tags=weights",
        'POST /collective_rpc {"method": "reload_weights"}',
        "POST /wake_up?tags=kv_cache",
    ),
}
"""By level. After level 2 the weights' place is empty, and they are read from their files again (vLLM's docs, Sleep Mode)."""
VLLM_STATE = "GET /is_sleeping"


@dataclass(frozen=True, slots=True)
class EngineCall:
    """One call of a server; `body` is JSON, or empty."""

    method: str
    path: str
    body: bytes = b""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class SleepRules:
    """The calls that put a server to sleep and wake it, in order, and the one that tells whether it sleeps (None: none does)."""

    sleep: tuple[EngineCall, ...]
    wake: tuple[EngineCall, ...]
    state: EngineCall | None = None


def rules_of(sleep: tuple[str, ...], wake: tuple[str, ...], state: str) -> SleepRules:
    """The rules of these texts.

    Raises:
        ValueError: One is no call.
    """
    return SleepRules(tuple(map(read_call, sleep)), tuple(map(read_call, wake)), read_call(state) if state else None)


def vllm_rules(level: int) -> SleepRules:
    """Those of vLLM, with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1."""
    return rules_of(VLLM_SLEEP[level], VLLM_WAKE[level], VLLM_STATE)


def read_call(text: str) -> EngineCall:
    """The call in `METHOD /path [JSON]`.

    Raises:
        ValueError: It is none.
    """
    found = _CALL.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no call: write METHOD /path, and JSON after that where it has a body")
    body = (found[3] or "").encode()
    try:
        if body:
            msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ValueError(f"{text!r}: what follows the path is no JSON: {error}") from error
    return EngineCall(found[1], found[2], body)


def says_asleep(raw: bytes) -> bool | None:
    """What the answer to `state` says: `{"is_sleeping": true}`, or the bare word; None when it says neither."""
    try:
        content = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return None
    said = content.get("is_sleeping") if isinstance(content, dict) else content
    return said if isinstance(said, bool) else None
