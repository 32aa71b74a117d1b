"""Replicas as the release server shows them (docs/contract.md 5), read from the reports that came with heartbeats. PURE."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from common.discovery.replica import REPORTED
from registry.core.model import Instance
from registry.core.report import read_report

_DEFAULTS: Mapping[str, Any] = {
    "server_mode": None,
    "model_name": None,
    "status": "unknown",
    "display_status": "Pending",
    "endpoint": "NA",
    "port": None,
    "multibox": None,
    "namespace": None,
    "workdir": None,
    "created_at": None,
    "request_id": None,
    **REPORTED,
}
AGENT_KIND = "node-agent"
"""`metadata.type` of a node agent's record."""


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
        "namespace": placement.get("namespace") or "inf-integ",
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
