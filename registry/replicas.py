"""Replicas as the release server shows them (CONTRACT.md 5), read from the reports that came with heartbeats. PURE."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from registry.model import Instance
from registry.report import read_report

_DEFAULTS: Mapping[str, Any] = {
    "server_mode": None,
    "model_name": None,
    "status": "unknown",
    "display_status": "Pending",
    "endpoint": "NA",
    "base_url": None,
    "host": None,
    "port": None,
    "multibox": None,
    "namespace": None,
    "workdir": None,
    "venv_path": None,
    "compile_wsjob": [],
    "execute_wsjob": [],
    "created_at": None,
    "updated_at": None,
    "ready_at": None,
    "error_message": None,
    "request_id": None,
    "diagnostics": None,
    "replica_pid": None,
    "restart_count": 0,
    "models": [],
    "stages": [],
    "next_restart_at": None,
    "stalled": False,
    "wsjob_states": {},
}
AGENT_KIND = "node-agent"
"""`metadata.type` of a node agent's record."""
FILTERS = ("server_mode", "status", "model_name")


def replica_infos(instances: Iterable[Instance]) -> dict[str, dict[str, Any]]:
    """Every replica that was reported, by its id.

    A replica may report with two records, its babysitter's and its server's: a record whose lease holds wins over one
    whose lease ended, and the later update over the earlier. A node's agent speaks for a replica that has no
    babysitter to do so, not yet or not any more.
    """
    found: dict[str, tuple[tuple[bool, str], Instance, dict[str, Any]]] = {}
    for instance in instances:
        for replica_id, report in _reports(instance):
            rank = (not instance.stale, str(report.get("updated_at") or ""))
            if replica_id not in found or rank > found[replica_id][0]:
                found[replica_id] = (rank, instance, report)
    return {
        key: _info(instance, report) for key, (_, instance, report) in sorted(found.items(), key=lambda item: item[0])
    }


def pending_info(replica_id: str, body: Mapping[str, Any], *, node: str, request_id: str | None) -> dict[str, Any]:
    """A replica that an agent made a moment ago, from its create request."""
    given, metadata = body.get("placement"), body.get("metadata")
    placement = given if isinstance(given, dict) else {}
    return {
        "replica_id": replica_id,
        **_DEFAULTS,
        "server_mode": body.get("server_mode"),
        "model_name": body.get("model_name"),
        "status": "pending",
        "multibox": placement.get("multibox"),
        "namespace": placement.get("namespace", "inf-integ"),
        "request_id": request_id,
        "metadata": {
            **(metadata if isinstance(metadata, dict) else {}),
            "node": node,
            "stale": False,
            "draining": False,
        },
    }


def agent_node(instance: Instance) -> str | None:
    """The node whose agent a record is; None for any other record.

    The name must be the node's: a register token that is bound to other names cannot make anybody an agent, who would be
    sent requests and shown a token.
    """
    node = instance.registration.metadata.get("node")
    return node if instance.kind == AGENT_KIND and instance.name == f"agent-{node}" and isinstance(node, str) else None


def _reports(instance: Instance) -> Iterator[tuple[str, dict[str, Any]]]:
    """The replicas that a record reports, by id: a babysitter's its own, an agent's those that have none."""
    if instance.report is None:
        return
    if instance.report.replica_id is not None:
        yield instance.report.replica_id, read_report(instance.report)
    elif agent_node(instance) is not None:
        told = read_report(instance.report).get("replicas")
        for report in told if isinstance(told, list) else []:
            if isinstance(report, dict) and isinstance(report.get("replica_id"), str):
                yield report["replica_id"], report


def select(infos: Iterable[Mapping[str, Any]], wanted: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """Those that match every given filter; a model matches by name or among the models served."""
    return [info for info in infos if all(_matches(info, key, value) for key, value in wanted.items())]


def _matches(info: Mapping[str, Any], key: str, value: str) -> bool:
    models = info["models"] if key == "model_name" and isinstance(info["models"], list) else []
    return info[key] == value or value in models


def _info(instance: Instance, report: Mapping[str, Any]) -> dict[str, Any]:
    said = instance.registration
    info = {"replica_id": report["replica_id"], **_DEFAULTS, "host": said.host}
    info.update({key: report[key] for key in _DEFAULTS if report.get(key) is not None})
    given, node = report.get("metadata"), said.metadata.get("node")
    info["metadata"] = {
        **(given if isinstance(given, dict) else {}),
        **({"node": node} if isinstance(node, str) else {}),
        "service": said.name,
        "hostname": said.hostname,
        "stale": instance.stale,
        "draining": instance.is_draining,
    }
    return info
