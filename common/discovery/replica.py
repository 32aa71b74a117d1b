"""PURE. A replica as the release server shows it (docs/contract.md 5): what the agent and the fleet's registry have in common."""

from collections.abc import Iterable, Mapping
from typing import Any

from common.wire.replica import ReplicaInfo

FILTERS = ("server_mode", "status", "model_name")
"""Members that a list may be narrowed by."""
REPORTED: Mapping[str, Any] = {
    "base_url": None,
    "host": None,
    "venv_path": None,
    "compile_wsjob": [],
    "execute_wsjob": [],
    "updated_at": None,
    "status_since": None,
    "ready_at": None,
    "error_message": None,
    "registration_error": None,
    "diagnostics": None,
    "replica_pid": None,
    "restart_count": 0,
    "models": [],
    "stages": [],
    "next_restart_at": None,
    "stalled": False,
    "late": False,
    "need_restart": [],
    "config_refused": None,
    "wsjob_states": {},
    "warnings": [],
}
"""Members that only the babysitter knows, and what they are before it has said anything."""


def select(infos: Iterable[Mapping[str, Any]], filters: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """Those that match every given filter; a model matches by name or among the models served."""
    return [info for info in infos if all(_matches(info, key, value) for key, value in filters.items())]


def select_infos(infos: Iterable[ReplicaInfo], filters: Mapping[str, str]) -> list[ReplicaInfo]:
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


def _matches(info: Mapping[str, Any], key: str, value: str) -> bool:
    if key == "server_mode":
        return _mode(info[key]) == _mode(value)
    models = info["models"] if key == "model_name" and isinstance(info["models"], list) else []
    return info[key] == value or value in models


def _mode(mode: object) -> object:
    """`inference` and `replica` are one mode."""
    return "replica" if mode == "inference" else mode
