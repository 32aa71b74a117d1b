"""PURE. Services, models and routing decisions as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from ctl.table import TextTable
from ctl.views.words import age, names

Record = Mapping[str, Any]


def status_of(record: Record) -> str:
    """A record's state in one word: what it says, unless its lease is over."""
    if record.get("draining"):
        return "draining"
    return "stale" if record.get("stale") else str(record.get("status", "?"))


def services(records: Sequence[Record], now: float) -> TextTable:
    """One row for each record, by name. `BEAT` is the time since its last heartbeat."""
    rows = [
        (
            str(record.get("name", "?")),
            str(_metadata(record).get("type") or ""),
            status_of(record),
            "yes" if record.get("is_healthy") else "no",
            age(record.get("last_heartbeat"), now),
            str(record.get("url", "")),
            names(_metadata(record).get("models")),
        )
        for record in sorted(records, key=lambda found: str(found.get("name")))
    ]
    return TextTable(("NAME", "TYPE", "STATUS", "HEALTHY", "BEAT", "URL", "MODELS"), rows, right=frozenset({"BEAT"}))


def models(listed: Sequence[Record], replicas: Sequence[Record]) -> TextTable:
    """One row for each model: how many of the replicas that list it can be asked, and by whom it is served."""
    rows = []
    for model in listed:
        name = str(model.get("id", "?"))
        serving = [replica for replica in replicas if name in (replica.get("models") or ())]
        ready = [replica for replica in serving if replica.get("healthy")]
        in_flight = sum(int(replica.get("in_flight") or 0) for replica in serving)
        who = ", ".join(sorted(str(replica.get("name")) for replica in ready))
        rows.append((name, f"{len(ready)}/{len(serving)}", str(in_flight), str(model.get("owned_by") or ""), who))
    columns = ("MODEL", "READY", "IN FLIGHT", "OWNED BY", "REPLICAS")
    return TextTable(columns, rows, right=frozenset({"READY", "IN FLIGHT"}))


def candidates(decision: Record) -> TextTable:
    """The router's candidates for a request: the one it would pick first, then the others by score."""
    picked = decision.get("picked")
    found = sorted(
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
        for one in found
    ]
    columns = ("", "REPLICA", "STANDING", "SCORE", "IN FLIGHT", "WEIGHT", "CACHE", "WHY NOT")
    numbers = frozenset({"SCORE", "IN FLIGHT", "WEIGHT"})
    return TextTable(columns, rows, right=numbers, states=frozenset({"STANDING"}))


def decision_line(decision: Record) -> str:
    """The decision in a sentence."""
    names_by_id = {one.get("id"): one.get("name") for one in decision.get("candidates") or ()}
    picked = names_by_id.get(decision.get("picked"))
    model = decision.get("model") or "any model"
    if not names_by_id:
        return f"{model}: no replica serves it; a request gets 503 now ('svcctl models' lists those that can be asked)"
    if picked is None:
        return f"{model}: no replica can take a request now"
    panic = "; none is fresh, so whoever is registered is asked" if decision.get("panic") else ""
    return f"{model}: would go to {picked}, by the rule '{decision.get('rule')}'{panic}"


def _metadata(record: Record) -> Record:
    found = record.get("metadata")
    return found if isinstance(found, Mapping) else {}
