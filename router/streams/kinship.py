"""PURE. Which replicas may go on with each other's streams: who knows how, and who has the same model.

A record's metadata declares it: `continues` (`chat`, `completions`, or `none`), `revision` and `tokenizer`. Engines that are
known by what they sign their models with continue both. Without a revision, what `/v1/models` tells of the model stands for it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from common.wire.base import ModelObject
from common.wire.hints import Hints
from router.streams.continuation import CHAT, COMPLETIONS

_OPERATIONS = {"chat": CHAT.decode(), "completions": COMPLETIONS.decode()}
_ENGINES = frozenset({"vllm", "sglang", "llamacpp"})
"""`owned_by` of their models."""
_MARKS = ("n_vocab", "n_params", "size")
"""What llama.cpp tells of a file (`meta`); two quantisations differ in their size."""


def continues(hints: Hints, objects: Iterable[ModelObject]) -> tuple[str, ...]:
    """The operations that a replica can go on with: as it declares, else by its engine."""
    told = hints.continues
    if told is None:
        return tuple(_OPERATIONS.values()) if any(one.get("owned_by") in _ENGINES for one in objects) else ()
    names = [told] if isinstance(told, str) else told
    return tuple(call for name, call in _OPERATIONS.items() if name in names)


def lineages(hints: Hints, objects: Mapping[str, ModelObject], models: Iterable[str]) -> dict[str, str]:
    """By model what tells its revision and its tokenizer; only replicas that tell the same go on with each other's streams."""
    return {model: line for model in models if (line := _lineage(hints, objects.get(model, {})))}


def _lineage(hints: Hints, told: Mapping[str, Any]) -> str:
    marks: dict[str, object] = {"revision": hints.revision} if hints.revision is not None else {}
    if not marks:
        marks.update({name: told[name] for name in ("root", "parent") if isinstance(told.get(name), str)})
        meta = told.get("meta")
        marks.update({name: meta[name] for name in _MARKS if name in meta} if isinstance(meta, dict) else {})
    if hints.tokenizer is not None:
        marks["tokenizer"] = hints.tokenizer
    return " ".join(f"{name}={value}" for name, value in marks.items())
