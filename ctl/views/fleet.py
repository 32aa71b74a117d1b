"""PURE. Services, models and routing decisions as tables."""

from collections.abc import Mapping, Sequence

from common.wire.base import JsonObject
from common.wire.hints import Hints
from common.wire.lora import LoraAdapter
from common.wire.record import ServiceRecord
from common.wire.router import RoutedService
from ctl import answers
from ctl.table import TextTable
from ctl.views.words import age, names


def status_of(record: ServiceRecord) -> str:
    """A record's state in one word: what it says, unless its lease is over."""
    return "draining" if record.draining else "stale" if record.stale else record.status


def services(records: Sequence[ServiceRecord], now: float) -> TextTable:
    """One row for each record, by name. `BEAT` is the time since its last heartbeat."""
    rows = [
        (
            record.name,
            record.type or "",
            status_of(record),
            "yes" if record.is_healthy else "no",
            age(record.last_heartbeat or None, now),
            record.url,
            names(answers.read(Hints, record.metadata).models),
        )
        for record in sorted(records, key=lambda record: record.name)
    ]
    return TextTable(("NAME", "TYPE", "STATUS", "HEALTHY", "BEAT", "URL", "MODELS"), rows, right=frozenset({"BEAT"}))


def models(listed: Sequence[JsonObject], replicas: Sequence[RoutedService]) -> TextTable:
    """One row for each model: how many of the replicas that list it can be asked, and by whom it is served."""
    rows = []
    for model in listed:
        name = str(model.get("id", "?"))
        serving = [replica for replica in replicas if name in replica.models]
        ready = [replica for replica in serving if replica.healthy]
        in_flight = sum(replica.in_flight for replica in serving)
        who = ", ".join(sorted(replica.name for replica in ready))
        rows.append((name, f"{len(ready)}/{len(serving)}", str(in_flight), str(model.get("owned_by") or ""), who))
    columns = ("MODEL", "READY", "IN FLIGHT", "OWNED BY", "REPLICAS")
    return TextTable(columns, rows, right=frozenset({"READY", "IN FLIGHT"}))


def adapters(found: Mapping[str, Sequence[LoraAdapter]]) -> TextTable:
    """One row for each adapter of each server."""
    rows = [(name, one.name, one.state, one.error or "") for name in sorted(found) for one in found[name]]
    return TextTable(("REPLICA", "ADAPTER", "STATE", "ERROR"), rows)


def candidates(decision: JsonObject) -> TextTable:
    """The router's candidates for a request: the one it would pick first, then the others by score."""
    picked = decision.get("picked")
    best_first = sorted(
        decision.get("candidates") or (), key=lambda one: (one.get("id") != picked, -(one.get("score") or 0.0))
    )
    rows = [
        (
            "→" if one.get("id") == picked else "",
            str(one.get("name", "?")),
            str(one.get("standing", "?")),
            "" if one.get("score") is None else f"{one['score']:.3g}",
            f"{one.get('in_flight', 0)}" + (f"/{one['limit']}" if one.get("limit") else ""),
            f"{one.get('weight', 1):g}",
            str(one.get("cache_type") or ""),
            str(one.get("excluded") or ""),
        )
        for one in best_first
    ]
    columns = ("", "REPLICA", "STANDING", "SCORE", "IN FLIGHT", "WEIGHT", "CACHE", "WHY NOT")
    numbers = frozenset({"SCORE", "IN FLIGHT", "WEIGHT"})
    return TextTable(columns, rows, right=numbers, states=frozenset({"STANDING"}))


def decision_line(decision: JsonObject) -> str:
    """The decision in a sentence."""
    names_by_id = {one.get("id"): one.get("name") for one in decision.get("candidates") or ()}
    picked = names_by_id.get(decision.get("picked"))
    model = decision.get("model") or "any model"
    if not names_by_id:
        return f"{model}: no replica serves it; a request gets 503 now ('svcctl models' lists those that can be asked)"
    if picked is None:
        return f"{model}: no replica can take a request now"
    panic = "; none is fresh, so whoever is registered is asked" if decision.get("panic") else ""
    names = decision.get("changed") or ()
    changes = f"; the router's settings change {', '.join(map(str, names))} in it" if names else ""
    return f"{model}: would go to {picked}, by the rule '{decision.get('rule')}'{panic}{changes}"
