"""PURE. A replica as the release server shows it (docs/contract.md 5): what the agent and the fleet's registry have in common."""

from collections.abc import Iterable, Mapping

from common.wire.base import JsonObject
from common.wire.deployment import DEPLOYMENT_KEY, REVISION_KEY
from common.wire.group import GROUP_KEY, RANK_KEY
from common.wire.replica import ReplicaInfo
from common.wire.words import ServerMode

NAME_LIMIT = 253
FILTERS = ("server_mode", "status", "model_name")
"""Members that a list may be narrowed by."""


def select(infos: Iterable[ReplicaInfo], filters: Mapping[str, str]) -> list[ReplicaInfo]:
    """Those that match every filter; a model matches by name or among the models served."""
    return [info for info in infos if fits(info, filters)]


def fits(info: ReplicaInfo, filters: Mapping[str, str]) -> bool:
    """Whether it matches every filter."""
    return all(_fits(info, key, value) for key, value in filters.items())


def deployment_marks(metadata: JsonObject) -> JsonObject:
    """What a request's metadata says of its deployment: every record and report of the replica has it, as short as it is."""
    marks: JsonObject = {}
    for key in (DEPLOYMENT_KEY, GROUP_KEY):
        name = metadata.get(key)
        if isinstance(name, str) and len(name) <= NAME_LIMIT:
            marks[key] = name
    for key in (REVISION_KEY, RANK_KEY):
        if isinstance(number := metadata.get(key), int):
            marks[key] = number
    return marks


def _fits(info: ReplicaInfo, key: str, value: str) -> bool:
    match key:
        case "server_mode":
            return _mode(info.server_mode) == _mode(value)
        case "model_name":
            return info.model_name == value or value in info.models
        case _:
            return info.status == value


def _mode(mode: str | None) -> str | None:
    """`inference` and `replica` are one mode."""
    return ServerMode.REPLICA if mode == ServerMode.INFERENCE else mode
