"""PURE. How long starts took and will take, from what replicas tell of themselves while they start.

Remaining = the median, over earlier starts, of the time from entering this stage until ready, less the time in this stage.
Where that is over, what those took that were in it for longer. So the parts that are done count by what they took this time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from common.wire.replica import ReplicaInfo
from common.wire.words import WAKING, ReplicaStatus, StageState
from registry.deployments.model import Assignment, StoredDeployment
from registry.deployments.sight import moment
from registry.deployments.stored import model_of

KEPT = 10
"""Starts that are remembered: a disk, a driver or a model's files may have changed since older ones."""
FLOOR_S = 1.0
"""Nothing is promised sooner."""
STAGES_MOST = 32
MODELS_MOST = 200
NODES_MOST = 64


@dataclass(frozen=True, slots=True)
class StartTimes:
    """How long earlier starts of a template and model on a node took: the last ten, newest last.

    `total_s` until ready; `stages`: per start, the seconds since it began at which each stage was entered, by name.
    """

    total_s: tuple[float, ...] = ()
    stages: tuple[Mapping[str, float], ...] = ()

    def learned(self, total_s: float, stages: Mapping[str, float]) -> "StartTimes":
        """With one start more."""
        kept = dict(list(stages.items())[:STAGES_MOST])
        return StartTimes((*self.total_s, total_s)[-KEPT:], (*self.stages, kept)[-KEPT:])


Starts = dict[str, dict[str, StartTimes]]
"""Of one template: by model, then by node."""
QUEUED = "queued"
"""The stage of a replica that waits for a scheduler, which alone knows how long; it is no part of the time that starts take."""


def usual_s(sources: Sequence[StartTimes]) -> float | None:
    """How long a start usually takes; `sources` as for `estimate`. None: nothing is known."""
    known = next((source for source in sources if source.total_s), None)
    return None if known is None else median(known.total_s)


def estimate(
    sources: Sequence[StartTimes], elapsed_s: float, stage: str | None = None, entered_s: float = 0.0
) -> tuple[int, float] | None:
    """Percent of the way, 0 to 99, and seconds until ready; None: nothing is known of earlier starts.

    Args:
        sources: This node's starts of the template and model, then other nodes', then the template's with any model; the first
            that knows anything counts.
        elapsed_s: Since the start began.
        stage: Where it is, if that is known.
        entered_s: When that was entered.
    """
    known = next((source for source in sources if source.total_s), None)
    if known is None:
        return None
    rests, spent_s = list(known.total_s), elapsed_s
    if stage is not None:
        ends = zip(known.total_s, known.stages, strict=False)
        in_stage = [total_s - entered[stage] for total_s, entered in ends if stage in entered]
        if in_stage:
            rests, spent_s = in_stage, elapsed_s - entered_s
    left_s = median(rests) - spent_s
    if left_s < FLOOR_S:
        left_s = median([rest_s - spent_s for rest_s in rests if rest_s > spent_s] or [FLOOR_S])
    eta_s = max(FLOOR_S, left_s)
    return min(99, int(100 * max(0.0, elapsed_s) / (max(0.0, elapsed_s) + eta_s))), eta_s


def template_of(stored: StoredDeployment) -> str:
    """Under what its starts are remembered."""
    mode = (stored.spec.get("request") or {}).get("server_mode")
    return str(stored.spec.get("template") or f"request-{mode}")


def _model(stored: StoredDeployment) -> str:
    return str(stored.spec.get("parameters", {}).get("model") or model_of(stored.name, stored.spec))


@dataclass(slots=True)
class Timing:
    """What is known of starts. `changed` are templates whose document is to be written."""

    known: dict[str, Starts] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    _starting: set[str] = field(default_factory=set)
    _left_queue_at: dict[str, float | None] = field(default_factory=dict)
    """By request that waited for a scheduler; None: it still does."""

    def observe(self, stored: StoredDeployment, assignment: Assignment, info: ReplicaInfo) -> float | None:
        """Learn from a start that this registry saw begin; returns how long it took when it has just ended well."""
        request_id = assignment.request_id
        if _stage(info) == QUEUED:
            self._left_queue_at[request_id] = None
        elif self._left_queue_at.get(request_id, 0.0) is None:
            self._left_queue_at[request_id] = moment(info.updated_at)
        if info.status in (ReplicaStatus.FAILED, ReplicaStatus.STOPPED):
            self._starting.discard(request_id)
            self._left_queue_at.pop(request_id, None)
        elif info.status is not ReplicaStatus.READY:
            if info.ready_at is None:
                self._starting.add(request_id)
        elif request_id in self._starting:
            self._starting.discard(request_id)
            ready_at, began_at = moment(info.ready_at), self._left_queue_at.pop(request_id, None) or assignment.made_at
            if ready_at is not None and ready_at > began_at:
                self._learn(stored, assignment, info, ready_at - began_at)
                return ready_at - began_at
        return None

    def _learn(self, stored: StoredDeployment, assignment: Assignment, info: ReplicaInfo, total_s: float) -> None:
        template = template_of(stored)
        models = self.known.setdefault(template, {})
        nodes = models.pop(_model(stored), {})
        times = nodes.pop(assignment.node, StartTimes())
        nodes[assignment.node] = times.learned(total_s, _entered(info, assignment))
        models[_model(stored)] = dict(list(nodes.items())[-NODES_MOST:])
        self.known[template] = dict(list(models.items())[-MODELS_MOST:])
        self.changed.add(template)

    def usual(self, stored: StoredDeployment) -> float | None:
        """How long a start of it usually takes."""
        return usual_s(self._sources(stored, None))

    def nearest(
        self,
        stored: StoredDeployment,
        starting: Iterable[tuple[Assignment, ReplicaInfo | None]],
        now: float,
    ) -> tuple[str | None, int | None, float | None]:
        """Stage, percent and seconds of the start that is nearest to its end."""
        best: tuple[str | None, int | None, float | None] = (None, None, None)
        for assignment, info in starting:
            stage = _stage(info)
            if info is not None and stage == QUEUED:
                expected_at = moment(info.stages[-1].ends_at or None)
                left_s = None if expected_at is None else max(0.0, expected_at - now) + (self.usual(stored) or 0.0)
                if best[0] is None or (left_s is not None and (best[2] is None or left_s < best[2])):
                    best = (stage, None, left_s)
                continue
            entered = _entered(info, assignment) if info else {}
            began_at = self._left_queue_at.get(assignment.request_id) or assignment.made_at
            entered_s = entered.get(stage, 0.0) if stage else 0.0
            sources = self._sources(stored, assignment.node)
            # To wake is no start: what those took says nothing of it.
            known = None if stage == WAKING else estimate(sources, now - began_at, stage, entered_s)
            word = stage or (info.status.value if info else "assigned")
            if best[0] is None or (known is not None and (best[2] is None or known[1] < best[2])):
                best = (word, *(known or (None, None)))
        return best

    def _sources(self, stored: StoredDeployment, node: str | None) -> list[StartTimes]:
        models = self.known.get(template_of(stored), {})
        same = models.get(_model(stored), {})
        own = [same[node]] if node in same and node is not None else []
        others = [times for where, times in same.items() if where != node]
        rest = [times for model, nodes in models.items() if model != _model(stored) for times in nodes.values()]
        return [*own, *others, *rest]


def _stage(info: ReplicaInfo | None) -> str | None:
    running = [one.name for one in info.stages if one.state == StageState.RUNNING] if info else []
    return running[-1] if running else None


def _entered(info: ReplicaInfo, assignment: Assignment) -> Mapping[str, float]:
    """The seconds at which each stage was entered, from when the assignment was made."""
    found = {}
    for one in info.stages:
        began_at = moment(one.began_at)
        if began_at is not None and began_at >= assignment.made_at:
            found[one.name] = began_at - assignment.made_at
    return found
