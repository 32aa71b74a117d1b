"""PURE. LoRA adapters on the wire: calls name an adapter, never a path."""

from typing import Literal

from common.wire.base import Message

AdapterState = Literal["unloaded", "loading", "loaded", "unloading", "failed"]


class LoraCall(Message, frozen=True, kw_only=True):
    """Body of `POST /lora/load`, `/lora/unload` and `/lora/demand`: an adapter that the babysitter's settings name."""

    name: str


class LoraAdapter(Message, frozen=True, kw_only=True):
    """One adapter of the settings; `error` is the engine's own word on the latest load that failed."""

    name: str
    state: AdapterState
    error: str | None = None
