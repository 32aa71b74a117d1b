"""PURE. Replicas as tables: the list, one in full, its timeline."""

from collections.abc import Mapping, Sequence

from common.wire.base import JsonObject
from common.wire.replica import InfoMarks, ReplicaInfo, Stage, Transition
from common.wire.words import NOT_SERVING
from ctl import answers
from ctl.table import TextTable
from ctl.views import groups
from ctl.views.words import age, duration, names

_FIRST = (
    "replica_id", "status", "display_status", "server_mode", "model_name", "models", "endpoint", "base_url", "host",
    "port", "multibox", "namespace", "compile_wsjob", "execute_wsjob", "restart_count", "created_at", "ready_at",
    "updated_at", "error_message",
)  # fmt: skip


def is_stale(info: ReplicaInfo) -> bool:
    """Nobody has heard of it for long."""
    return answers.read(InfoMarks, info.metadata).stale is True


def word(info: ReplicaInfo) -> str:
    """The replica's state: what it says, unless nobody has heard of it for long."""
    return "stale" if is_stale(info) else info.status.value


def node_of(info: ReplicaInfo) -> str:
    """Where it runs."""
    marks = answers.read(InfoMarks, info.metadata)
    return marks.node or marks.hostname or info.host or ""


def place_of(info: ReplicaInfo) -> tuple[str, int]:
    """Its group and its rank in it; no group: it is a replica by itself."""
    marks = answers.read(InfoMarks, info.metadata)
    return (marks.group or "", marks.rank) if isinstance(marks.rank, int) else ("", 0)


def whole_ones(infos: Sequence[ReplicaInfo], status: str | None = None) -> list[list[ReplicaInfo]]:
    """Each replica as its members, the oldest first; only those whose status, as a whole, is `status`."""
    by_age = sorted(infos, key=lambda info: (info.created_at or "", info.replica_id))
    found = groups.together(by_age, place_of)
    return found if status is None else [one for one in found if groups.whole([part.status for part in one]) == status]


def listed(replicas: Sequence[Sequence[ReplicaInfo]], now: float) -> TextTable:
    """One row for each replica; of a group the leader's, with the state of all of it, and below it one for each follower."""
    rows = []
    for leader, *followers in replicas:
        model = leader.model_name or names(leader.models)
        rows.append(_row(leader, model, groups.whole([word(leader), *map(word, followers)]), now))
        rows += [_row(one, member(place_of(one)[1]), word(one), now) for one in followers]
    columns = ("ID", "MODEL", "STATUS", "AGE", "NODE", "ENDPOINT", "JOBS", "RESTARTS", "ERROR")
    return TextTable(columns, rows, right=frozenset({"AGE", "JOBS", "RESTARTS"}))


def member(rank: int) -> str:
    """What stands in place of the model in the row of a follower."""
    return f"└ rank {rank}"


def _row(info: ReplicaInfo, model: str, state: str, now: float) -> tuple[str, ...]:
    return (
        info.replica_id,
        model,
        state,
        age(info.created_at, now),
        node_of(info),
        "" if info.endpoint == NOT_SERVING else info.endpoint,
        f"{len(info.compile_wsjob)}/{len(info.execute_wsjob)}",
        str(info.restart_count),
        first_line(info.error_message)[:80],
    )


def one(info: JsonObject) -> TextTable:
    """Everything known of a replica: the usual members first, then the others; empty ones are left out."""
    keys = [key for key in _FIRST if key in info] + sorted(key for key in info if key not in _FIRST)
    rows = [(key, _value(info[key])) for key in keys if info[key] not in (None, "", [], {})]
    return TextTable(("MEMBER", "VALUE"), rows)


def transitions(moves: Sequence[Transition]) -> TextTable:
    """Every change of state, with how long the old one lasted and why it ended."""
    rows = [(move.at, move.before, move.after, duration(move.lasted_s), move.cause) for move in moves]
    columns = ("AT", "FROM", "STATE", "LASTED", "CAUSE")
    return TextTable(columns, rows, right=frozenset({"LASTED"}))


def stages(deployment: Sequence[Stage]) -> TextTable:
    """The last deployment's stages."""
    rows = [(stage.name, stage.state, duration(stage.took_s), str(stage.attempt), stage.detail) for stage in deployment]
    return TextTable(("STAGE", "STATE", "TOOK", "TRY", "DETAIL"), rows, right=frozenset({"TOOK", "TRY"}))


def first_line(text: str | None) -> str:
    """The first line of a reason; nothing where there is none."""
    return (text or "").strip().partition("\n")[0]


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return names(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return str(value)
