"""PURE. Replicas as tables: the list, one in full, its timeline."""

from collections.abc import Mapping, Sequence
from typing import Any

from ctl.table import TextTable
from ctl.views.words import age, duration, names

Info = Mapping[str, Any]
_FIRST = (
    "replica_id", "status", "display_status", "server_mode", "model_name", "models", "endpoint", "base_url", "host",
    "port", "multibox", "namespace", "compile_wsjob", "execute_wsjob", "restart_count", "created_at", "ready_at",
    "updated_at", "error_message",
)  # fmt: skip


def word(info: Info) -> str:
    """The replica's state: what it says, unless nobody has heard of it for long."""
    metadata = info.get("metadata")
    stale = isinstance(metadata, Mapping) and metadata.get("stale")
    return "stale" if stale else str(info.get("status", "?"))


def node_of(info: Info) -> str:
    """Where it runs."""
    metadata = info.get("metadata")
    found = metadata if isinstance(metadata, Mapping) else {}
    return str(found.get("node") or found.get("hostname") or info.get("host") or "")


def listed(infos: Sequence[Info], now: float) -> TextTable:
    """One row for each replica, the oldest first."""
    rows = [
        (
            str(info.get("replica_id", "?")),
            str(info.get("model_name") or names(info.get("models"))),
            word(info),
            age(info.get("created_at"), now),
            node_of(info),
            "" if info.get("endpoint") in (None, "NA") else str(info["endpoint"]),
            f"{_count(info, 'compile_wsjob')}/{_count(info, 'execute_wsjob')}",
            str(info.get("restart_count") or 0),
            _first_line(info.get("error_message")),
        )
        for info in sorted(infos, key=lambda info: (str(info.get("created_at") or ""), str(info.get("replica_id"))))
    ]
    columns = ("ID", "MODEL", "STATUS", "AGE", "NODE", "ENDPOINT", "JOBS", "RESTARTS", "ERROR")
    return TextTable(columns, rows, right=frozenset({"AGE", "JOBS", "RESTARTS"}))


def one(info: Info) -> TextTable:
    """Everything known of a replica: the usual members first, then the others; empty ones are left out."""
    keys = [key for key in _FIRST if key in info] + sorted(key for key in info if key not in _FIRST)
    rows = [(key, _value(info[key])) for key in keys if info[key] not in (None, "", [], {})]
    return TextTable(("MEMBER", "VALUE"), rows)


def transitions(timeline: Info) -> TextTable:
    """Every change of state, with how long the old one lasted and why it ended."""
    rows = [
        (
            str(move.get("at", "")),
            str(move.get("from", "")),
            str(move.get("to", "")),
            duration(float(move.get("lasted_s") or 0.0)),
            str(move.get("cause", "")),
        )
        for move in timeline.get("transitions") or ()
        if isinstance(move, Mapping)
    ]
    columns = ("AT", "FROM", "STATE", "LASTED", "CAUSE")
    return TextTable(columns, rows, right=frozenset({"LASTED"}))


def stages(timeline: Info) -> TextTable:
    """The last deployment's stages."""
    rows = [
        (
            str(stage.get("name", "")),
            str(stage.get("state", "")),
            duration(float(stage.get("took_s") or 0.0)),
            str(stage.get("attempt", "")),
            str(stage.get("detail", "")),
        )
        for stage in timeline.get("stages") or ()
        if isinstance(stage, Mapping)
    ]
    return TextTable(("STAGE", "STATE", "TOOK", "TRY", "DETAIL"), rows, right=frozenset({"TOOK", "TRY"}))


def _count(info: Info, key: str) -> int:
    found = info.get(key)
    return len(found) if isinstance(found, list) else 0


def _first_line(text: object) -> str:
    lines = str(text or "").strip().splitlines()
    return lines[0][:80] if lines else ""


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return names(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return str(value)
