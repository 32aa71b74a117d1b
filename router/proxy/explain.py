"""`POST /admin/explain`: for a given request body, who could be asked, with which score, who would be, and why not."""

from collections.abc import Sequence

import msgspec

from router.candidates import choose_from
from router.counters import IN_FLIGHT
from router.model import Eligibility, Endpoint, Facts
from router.policy.rule import Scores
from router.proxy.engine import Engine

EXPLAINED = b"/chat/completions"
"""The path that a body to be explained is taken to be for."""


def explain(engine: Engine, facts: Facts, changed: Sequence[str] = ()) -> bytes:
    """The decision that this worker would make now, as JSON; changes nothing. `changed`: what rules change in the body."""
    now = engine.now()
    peers = engine.peers_for(facts.model, EXPLAINED)
    choice = choose_from(peers, (), engine.outliers, now)
    roomy = [endpoint for endpoint in choice.endpoints if engine.has_room(endpoint)]
    rule, scores, pick = engine.chooser.explain(roomy, facts, now) if roomy else ("none", {}, None)
    candidates = {endpoint.id for endpoint in choice.endpoints}
    explanation = {
        "model": facts.model,
        "changed": changed,
        "text_bytes": facts.text_bytes,
        "affinity": facts.affinity,
        "rule": rule,
        "panic": choice.panic,
        "picked": pick.id if pick is not None else None,
        "table_version": engine.table.version,
        "candidates": [
            {
                "id": endpoint.id,
                "name": endpoint.name,
                "standing": endpoint.eligibility.value,
                "weight": endpoint.weight,
                "in_flight": engine.counters.total(endpoint.slot, IN_FLIGHT),
                "limit": endpoint.limit,
                "cache_type": endpoint.cache_type,
                "score": scores.get(endpoint.id, {}).get("score"),
                "inputs": scores.get(endpoint.id),
                "excluded": _why_not(engine, endpoint, candidates, scores, now),
            }
            for endpoint in peers
        ],
    }
    return msgspec.json.encode(explanation)


def _why_not(engine: Engine, endpoint: Endpoint, candidates: set[str], scores: Scores, now: float) -> str | None:
    """Why `endpoint` has no score; None when it has one."""
    if endpoint.id in scores:
        return None
    if endpoint.id in candidates and endpoint.id in engine.chooser.passed_over:
        return "silent"
    if endpoint.id in candidates:
        return "cache_type" if engine.has_room(endpoint) else "full"
    if endpoint.eligibility in (Eligibility.DOWN, Eligibility.DRAINING):
        return endpoint.eligibility.value
    return "another is fresh" if engine.outliers.admits(endpoint, now) else "ejected"
