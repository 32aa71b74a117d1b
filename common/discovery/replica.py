"""PURE. A replica as the release server shows it (docs/contract.md 5): what the agent and the fleet's registry have in common."""

from collections.abc import Iterable, Mapping

from common.wire.replica import ReplicaInfo
from common.wire.words import ServerMode

FILTERS = ("server_mode", "status", "model_name")
"""Members that a list may be narrowed by."""


def select(infos: Iterable[ReplicaInfo], filters: Mapping[str, str]) -> list[ReplicaInfo]:
    """Those that match every filter; a model matches by name or among the models served."""
    return [info for info in infos if all(_fits(info, key, value) for key, value in filters.items())]


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
