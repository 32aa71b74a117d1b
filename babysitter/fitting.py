"""PURE. What others are told of the models, and all that a report holds, cut to what they take.

A server may list two thousand models, each with a page of text; a registry bounds a record and a report. Names matter
most: without them nobody is routed. So the record has the names, and the whole objects where they are small; the report
has the objects where the record has not. What was left out is said.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from common.discovery.limits import BODY_LIMIT_BYTES, METADATA_LIMIT_BYTES
from common.wire.base import JsonObject, ModelObject
from common.wire.replica import ReplicaHeartbeat

MOST_MODELS = 10_000
KEPT_LIMIT_BYTES = 1 << 20
"""Of the model objects that are remembered; the state file holds them."""
NAMES_LIMIT_BYTES = 256 << 10
OBJECTS_LIMIT_BYTES = 64 << 10
REPORT_LIMIT_BYTES = BODY_LIMIT_BYTES - (32 << 10)
RESTLESS = ("created", "permission")
"""Members that vLLM makes anew for every answer."""
EXPENDABLE = ("diagnostics", "models_list", "wsjob_states", "stages", "compile_wsjob", "execute_wsjob", "metadata")
"""Members of a report that go first when it is too long, in this order."""
_size = msgspec.json.Encoder().encode


def kept_models(seen: Sequence[ModelObject], before: Sequence[ModelObject]) -> list[ModelObject]:
    """The model objects to remember: an object in which only what is restless changed stays what it was.

    Args:
        seen: What the server lists now.
        before: What was remembered of its last list.
    """
    remembered = {model.get("id"): model for model in before}
    kept = []
    for model in seen[:MOST_MODELS]:
        old = remembered.get(model["id"])
        kept.append(old if old is not None and _settled(old) == _settled(model) else model)
    if len(_size(kept)) > KEPT_LIMIT_BYTES:
        return [{"id": model["id"], "object": "model"} for model in kept]
    return kept


def names(models: Sequence[ModelObject]) -> list[str]:
    """Ids of the models, as many as may be told."""
    ids, size = [], 2
    for model in models:
        if isinstance(name := model.get("id"), str):
            size += len(_size(name)) + 1
            if size > NAMES_LIMIT_BYTES:
                break
            ids.append(name)
    return ids


def in_record(models: Sequence[ModelObject], rest: JsonObject) -> JsonObject:
    """The members of a record's metadata that speak of models: the whole objects only where everything stays small.

    Args:
        models: The server's model objects.
        rest: The other members of the metadata.
    """
    ids = names(models)
    short = {"models": ids, **({"models_left_out": len(models) - len(ids)} if len(ids) < len(models) else {})}
    whole = {**short, "models_list": list(models)}
    return whole if len(_size({**rest, **whole})) <= METADATA_LIMIT_BYTES else short


def in_report(models: Sequence[ModelObject]) -> list[ModelObject]:
    """The model objects for a report, as many as fit."""
    objects, size = [], 2
    for model in models:
        size += len(_size(model)) + 1
        if size > OBJECTS_LIMIT_BYTES:
            break
        objects.append(model)
    return objects


def fitting(report: ReplicaHeartbeat) -> ReplicaHeartbeat:
    """The report, without what makes it longer than a registry takes; `left_out` names that."""
    left_out: list[str] = []
    for name in EXPENDABLE:
        if len(_size(report)) <= REPORT_LIMIT_BYTES:
            break
        if member := getattr(report, name):
            left_out.append(name)
            report = replace(report, **{name: type(member)()}, left_out=left_out)
    return report


def _settled(model: ModelObject) -> ModelObject:
    return {name: value for name, value in model.items() if name not in RESTLESS}
