"""PURE. Nodes and their accelerators as tables."""

from collections.abc import Sequence

from msgspec import UNSET

from common.wire.deployment import Accelerator, NodeInfo
from ctl.table import TextTable
from ctl.views.words import size

MIB = 1 << 20


def state(node: NodeInfo) -> str:
    """A node's state in one word."""
    return "away" if node.away else "draining" if node.draining else "ready"


def nodes(shown: Sequence[NodeInfo]) -> TextTable:
    """One row for each node, by name. `FREE` counts the accelerators that nobody has."""
    rows = [
        (
            node.node,
            state(node),
            str(node.live) if node.capacity is None else f"{node.live}/{node.capacity}",
            _kinds(node.accelerators),
            str(sum(not holders(one) for one in node.accelerators)) if node.accelerators else "",
            " ".join(f"{name}={value}" for name, value in sorted(node.labels.items())),
            node.url,
        )
        for node in sorted(shown, key=lambda node: node.node)
    ]
    columns = ("NODE", "STATE", "REPLICAS", "ACCELERATORS", "FREE", "LABELS", "AGENT")
    return TextTable(columns, rows, right=frozenset({"REPLICAS", "FREE"}))


def accelerators(shown: Sequence[NodeInfo]) -> TextTable:
    """One row for each accelerator: what its driver tells, and who has it."""
    rows = [
        (
            node.node,
            str(one.index),
            one.kind,
            size(one.memory_mb * MIB) if one.memory_mb else "",
            "" if one.used_mb is UNSET else size(one.used_mb * MIB),
            "" if one.busy_percent is UNSET else f"{one.busy_percent}%",
            size(one.shared_mb * MIB) if one.shared_mb else "",
            ", ".join(holders(one)) or "free",
        )
        for node in sorted(shown, key=lambda node: node.node)
        for one in node.accelerators
    ]
    columns = ("NODE", "#", "KIND", "MEMORY", "USED", "BUSY", "PROMISED", "HELD BY")
    return TextTable(columns, rows, right=frozenset({"#", "MEMORY", "USED", "BUSY", "PROMISED"}))


def holders(one: Accelerator) -> list[str]:
    """Who has it: replicas, and files of babysitters that no agent made."""
    return [*one.replicas, *one.claims]


def _kinds(found: Sequence[Accelerator]) -> str:
    """`4 cuda`; of several kinds each."""
    kinds = list(dict.fromkeys(one.kind for one in found))
    return ", ".join(f"{sum(one.kind == kind for one in found)} {kind}" for kind in kinds)
