"""PURE. The live table: replicas with their state and their rates, and the fleet in one line."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from msgspec import UNSET, to_builtins

from common.wire.deployment import DeploymentInfo, DeploymentPhase
from common.wire.hints import Hints
from common.wire.replica import ReplicaInfo
from common.wire.router import KeyTraffic, RoutedService
from common.wire.words import ReplicaStatus
from ctl import answers
from ctl.table import TextTable
from ctl.views import deployments, groups
from ctl.views.rates import Rates
from ctl.views.replicas import member, node_of, place_of, word
from ctl.views.usage import NOBODY
from ctl.views.words import duration, names

SORTS = ("busy", "name", "state", "ttft", "errors")
ENGINES_WIDTH = 110
"""Of a terminal that has room for what engines tell."""
AWAITED_LINES = 5
_ON_ITS_WAY = frozenset({DeploymentPhase.QUEUED, DeploymentPhase.STARTING})


@dataclass(frozen=True, slots=True)
class Engine:
    """What its engine tells; None where it does not. Shares are from 0 to 1."""

    running: int | None = None
    waiting: int | None = None
    kv_cache_usage: float | None = None
    prefix_hit_share: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One replica, a member of one that is a group, or a server that has no babysitter."""

    name: str
    model: str
    state: str
    node: str
    restarts: int
    rates: Rates = field(default_factory=Rates)
    engine: Engine = field(default_factory=Engine)
    group: str = ""
    rank: int = 0


def rows(infos: Sequence[ReplicaInfo], services: Sequence[RoutedService], rates: Mapping[str, Rates]) -> list[Row]:
    """Replicas as their babysitters tell, joined with what the router sees of their servers.

    The server of replica X is X-server, or names X as its parent; a server of nobody's is a row of its own.
    """
    made: list[Row] = []
    others = {service.name: service for service in services}
    parents = {answers.read(Hints, service.metadata).parent_service: service.name for service in services}
    for info in infos:
        server = parents.get(info.replica_id, f"{info.replica_id}-server")
        service = others.pop(server, None)
        state = word(info)
        if state == ReplicaStatus.READY and service is not None and service.standing in ("down", "draining"):
            state = service.standing
        model = info.model_name or names(info.models)
        seen, (group, rank) = rates.get(server, Rates()), place_of(info)
        restarts, engine = info.restart_count, engine_of(info)
        made.append(Row(info.replica_id, model, state, node_of(info), restarts, seen, engine, group, rank))
    for name, service in others.items():
        state = ReplicaStatus.READY.value if service.healthy else service.standing
        made.append(Row(name, names(service.models), state, service.host, 0, rates.get(name, Rates())))
    return made


def engine_of(info: ReplicaInfo) -> Engine:
    """What a replica's report says of its engine."""
    queries, hits = info.prefix_query_tokens or None, info.prefix_hit_tokens
    return Engine(
        None if info.running is UNSET else info.running,
        None if info.waiting is UNSET else info.waiting,
        None if info.kv_cache_usage is UNSET else info.kv_cache_usage,
        None if queries is None or hits is UNSET else hits / queries,
    )


def ordered(all_rows: Sequence[Row], by: str) -> list[Row]:
    """Rows in one of the orders of `SORTS`; names decide between equals. A group is sorted as one."""
    replicas = [(_as_one(members), members) for members in _replicas(all_rows)]
    replicas.sort(key=lambda one: (_order(one[0], by), one[0].name))
    return [row for _, members in replicas for row in members]


def folded(all_rows: Sequence[Row]) -> list[Row]:
    """The rows to show: of a group its leader's tells of all of it, and its followers are below."""
    shown = []
    for leader, *followers in _replicas(all_rows):
        shown.append(_as_one([leader, *followers]))
        shown += [replace(row, model=member(row.rank)) for row in followers]
    return shown


def _replicas(all_rows: Sequence[Row]) -> list[list[Row]]:
    return groups.together(all_rows, lambda row: (row.group, row.rank))


def _as_one(members: Sequence[Row]) -> Row:
    return replace(members[0], state=groups.whole([row.state for row in members]))


def _order(row: Row, by: str) -> tuple[float, ...]:
    match by:
        case "busy":
            return (-row.rates.in_flight, -row.rates.tokens, -row.rates.requests)
        case "state":
            return (groups.urgency(row.state),)
        case "ttft":
            return (-(row.rates.ttft_p95_s or 0.0),)
        case "errors":
            return (-row.rates.errors,)
        case _:
            return ()


def table(shown: Sequence[Row], width: int | None = None) -> TextTable:
    """The rows as they stand; without the engines' columns where none tells anything, or there is no room for them."""
    engines = (width is None or width >= ENGINES_WIDTH) and any(row.engine != Engine() for row in shown)
    cells = [
        (
            row.name,
            row.model,
            row.state,
            row.node,
            str(row.rates.in_flight),
            number(row.rates.requests),
            number(row.rates.tokens),
            _time(row.rates.ttft_p50_s),
            _time(row.rates.ttft_p95_s),
            number(row.rates.errors),
            str(row.restarts) if row.restarts else "",
            *(_engine_cells(row.engine) if engines else ()),
        )
        for row in shown
    ]
    columns = (
        "REPLICA", "MODEL", "STATE", "NODE", "IN FLIGHT", "REQ/S", "TOK/S", "TTFT P50", "P95", "ERR/S", "RESTARTS",
        *(("RUN", "WAIT", "KV", "CACHED") if engines else ()),
    )  # fmt: skip
    return TextTable(columns, cells, right=frozenset(columns[4:]))


def _engine_cells(engine: Engine) -> tuple[str, ...]:
    counts = ("" if count is None else str(count) for count in (engine.running, engine.waiting))
    shares = ("" if share is None else f"{share:.0%}" for share in (engine.kv_cache_usage, engine.prefix_hit_share))
    return (*counts, *shares)


def headline(all_rows: Sequence[Row], fleet: Rates) -> str:
    """The fleet in one line."""
    states = [_as_one(members).state for members in _replicas(all_rows)]
    return "   ".join(
        (
            f"{states.count('ready')}/{len(states)} ready",
            f"{fleet.in_flight} in flight",
            f"{number(fleet.requests) or '0'} req/s",
            f"{number(fleet.tokens) or '0'} tok/s",
            f"TTFT {_time(fleet.ttft_p50_s) or '-'} (p95 {_time(fleet.ttft_p95_s) or '-'})",
            f"{number(fleet.errors) or '0'} err/s",
        )
    )


def awaited(infos: Sequence[DeploymentInfo]) -> list[str]:
    """A line for each deployment that starts or that requests wait for, those with most of these first."""
    lines = [
        f"{info.name}: {deployments.stage(info)} {deployments.eta(info)}".rstrip() + f", {info.waiting} waiting"
        for info in sorted(infos, key=lambda info: (-info.waiting, info.name))
        if info.waiting or info.phase in _ON_ITS_WAY
    ]
    return lines if len(lines) <= AWAITED_LINES else [*lines[:AWAITED_LINES], f"and {len(lines) - AWAITED_LINES} more"]


def keys(shown: Sequence[KeyTraffic]) -> TextTable:
    """Who asks."""
    cells = [
        (one.key or NOBODY, *map(number, (one.requests_s, one.prompt_tokens_s, one.completion_tokens_s)))
        for one in shown
    ]
    columns = ("KEY", "REQ/S", "PROMPT TOK/S", "TOK/S")
    return TextTable(columns, cells, right=frozenset(columns[1:]))


def document(
    all_rows: Sequence[Row],
    fleet: Rates,
    troubles: Sequence[str],
    infos: Sequence[DeploymentInfo],
    asking: Sequence[KeyTraffic],
) -> dict[str, object]:
    """One look as JSON."""
    waits = [
        {"name": one.name, "phase": one.phase, "waiting": one.waiting, "eta": deployments.eta(one)} for one in infos
    ]
    return {
        "replicas": [asdict(row) for row in all_rows],
        "fleet": asdict(fleet),
        "deployments": waits,
        "keys": [to_builtins(one) for one in asking],
        "troubles": list(troubles),
    }


def number(value: float) -> str:
    """A rate; nothing for none at all."""
    if value <= 0:
        return ""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"  # noqa: PLR2004 - three digits are enough


def _time(value: float | None) -> str:
    """A time to the first byte; nothing when there was no answer."""
    return "" if value is None else duration(value)
