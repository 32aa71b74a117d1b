"""PURE. Deployments, revisions and templates as tables and lines."""

from collections import Counter
from collections.abc import Sequence

from common.wire.deployment import DeploymentChange, DeploymentInfo, DeploymentRevision, TemplateInfo
from ctl import answers
from ctl.table import TextTable
from ctl.views.words import duration, names

_PHASE = frozenset({"PHASE", "STATUS"})


def table(infos: Sequence[DeploymentInfo]) -> TextTable:
    """One line for each deployment."""
    counts = ("WANTED", "READY", "STARTING", "ASLEEP", "REV")
    return TextTable(
        ("NAME", "MODEL", "PHASE", *counts, "ETA", "REASON"),
        [
            (
                info.name,
                info.model,
                stage(info),
                *map(str, (info.wanted, info.ready, info.starting, info.asleep, info.revision)),
                eta(info),
                info.reason or "",
            )
            for info in sorted(infos, key=lambda info: info.name)
        ],
        right=frozenset(counts),
        states=_PHASE,
    )


def stage(info: DeploymentInfo) -> str:
    """The phase, with what a start does now and its place in the line."""
    word = str(info.phase)
    if isinstance(info.stage, str) and info.stage:
        word = f"{word} ({info.stage})"
    return f"{word} (place {info.position})" if isinstance(info.position, int) else word


def eta(info: DeploymentInfo) -> str:
    """`41% eta 12s`; empty where nothing is known."""
    percent = f"{info.percent}%" if isinstance(info.percent, int) else ""
    left = f"eta {duration(info.eta_s)}" if isinstance(info.eta_s, int | float) else ""
    return " ".join(part for part in (percent, left) if part)


def replicas(info: DeploymentInfo) -> TextTable:
    """The replicas of one deployment; each other member of a group has a line below its leader."""
    rows = []
    for one in info.replicas:
        status = "leaving" if one.leaving else one.status
        rows.append((one.request_id, one.replica_id or "", one.node, str(one.revision), status))
        rows += [(f"  rank {it.rank}", it.replica_id or "", it.node, "", it.status) for it in one.members if it.rank]
    return TextTable(("REQUEST", "REPLICA", "NODE", "REV", "STATUS"), rows, right=frozenset({"REV"}), states=_PHASE)


def revisions(info: DeploymentInfo) -> TextTable:
    """The last ten revisions, the newest first, and how many replicas run each."""
    runs = Counter(one.revision for one in info.replicas if not one.leaving)
    history = {one.revision: one for one in info.history}
    history.setdefault(info.revision, DeploymentRevision(revision=info.revision, at=info.updated_at, spec=info.spec))
    rows = [
        (
            str(one.revision),
            one.at,
            str(runs[one.revision]),
            "current" if one.revision == info.revision else "",
            one.cause,
        )
        for one in sorted(history.values(), key=lambda one: -one.revision)
    ]
    return TextTable(("REVISION", "AT", "REPLICAS", "", "CAUSE"), rows, right=frozenset({"REVISION", "REPLICAS"}))


def change(done: DeploymentChange, *, with_diff: bool) -> list[str]:
    """`qwen: rolls (revision 3)`, and the members that differ."""
    at = f" (revision {done.revision})" if done.change in ("created", "rolls") else ""
    lines = [f"{done.name}: {done.change}{at}"]
    if with_diff:
        for member, sides in done.diff.items():
            before, after = (*map(_short, sides), "", "")[:2]
            lines.append(f"  {member}: {before} -> {after}")
    return lines


def _short(value: object) -> str:
    return "unset" if value is None else str(value)


def templates(found: Sequence[TemplateInfo]) -> TextTable:
    """What can be deployed, and where."""
    rows = [
        (one.name, _needs(one), names(one.nodes), _parameters(one), _error(one) or one.description)
        for one in sorted(found, key=lambda one: (one.name, one.digest))
    ]
    return TextTable(("NAME", "NEEDS", "NODES", "PARAMETERS", "DESCRIPTION"), rows)


def _error(one: TemplateInfo) -> str:
    return f"of no use: {one.error}" if isinstance(one.error, str) else ""


def _needs(one: TemplateInfo) -> str:
    parts = [
        f"{one.accelerators} accelerator(s)" if one.accelerators else "",
        f"{one.memory_mb} MB" if one.memory_mb else "",
        f"on {one.followers + 1} nodes" if one.followers else "",
    ]
    return " ".join((*filter(None, parts), *(["shared"] if one.shares else ()), *(["sleeps"] if one.sleeps else ())))


def _parameters(one: TemplateInfo) -> str:
    known = one.parameters.get("properties")
    required = one.parameters.get("required")
    must = set(required) if isinstance(required, list) else set()
    return " ".join(f"{key}*" if key in must else str(key) for key in known) if isinstance(known, dict) else ""


def parameter_lines(one: TemplateInfo) -> list[str]:
    """Each parameter with its type, default and description."""
    known = one.parameters.get("properties")
    lines: list[str] = []
    for key, rule in known.items() if isinstance(known, dict) else ():
        told = rule if isinstance(rule, dict) else {}
        default = f" (default: {told['default']})" if told.get("default") is not None else ""
        text = f": {told['description']}" if told.get("description") else ""
        lines.append(f"  {key} <{told.get('type', 'any')}>{default}{text}")
    return lines


def read_infos(answer: object) -> list[DeploymentInfo]:
    """The deployments in the list call's answer."""
    return answers.items(DeploymentInfo, answer, "deployments")
