"""PURE. How long a start still takes, from how long earlier ones took.

Remaining = the median, over earlier starts, of the time from entering this stage until ready, less the time in this stage.
Where that is over, what those took that were in it for longer. So the parts that are done count by what they took this time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from registry.deployments.model import StartTimes

KEPT = 10
"""Starts that are remembered: a disk, a driver or a model's files may have changed since older ones."""
FLOOR_S = 1.0
"""Nothing is promised sooner."""
STAGES_MOST = 32


@dataclass(frozen=True, slots=True)
class TimedStart:
    """One start that ended well: seconds until ready, and the seconds at which it entered each stage, by name."""

    total_s: float
    stages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Under:
    """A start that is under way: seconds since it began, its stage now, and the seconds at which that was entered."""

    elapsed_s: float
    stage: str | None = None
    entered_s: float = 0.0


def learned(times: StartTimes, start: TimedStart) -> StartTimes:
    """With one start more, the newest last."""
    stages = dict(list(start.stages.items())[:STAGES_MOST])
    return StartTimes((*times.total_s, start.total_s)[-KEPT:], (*times.stages, stages)[-KEPT:])


def usual_s(sources: Sequence[StartTimes]) -> float | None:
    """How long a start usually takes; `sources` as for `estimate`. None: nothing is known."""
    known = next((source for source in sources if source.total_s), None)
    return None if known is None else median(known.total_s)


def estimate(sources: Sequence[StartTimes], under: Under) -> tuple[int, float] | None:
    """Percent of the way, 0 to 99, and seconds until ready; None: nothing is known of earlier starts.

    Args:
        sources: This node's starts of the template and model, then other nodes', then the template's with any model; the first
            that knows anything counts.
        under: The start.
    """
    known = next((source for source in sources if source.total_s), None)
    if known is None:
        return None
    rests, spent_s = list(known.total_s), under.elapsed_s
    if under.stage is not None:
        ends = zip(known.total_s, known.stages, strict=False)
        in_stage = [total_s - stages[under.stage] for total_s, stages in ends if under.stage in stages]
        if in_stage:
            rests, spent_s = in_stage, under.elapsed_s - under.entered_s
    left_s = median(rests) - spent_s
    if left_s < FLOOR_S:
        left_s = median([rest_s - spent_s for rest_s in rests if rest_s > spent_s] or [FLOOR_S])
    eta_s = max(FLOOR_S, left_s)
    return min(99, int(100 * max(0.0, under.elapsed_s) / (max(0.0, under.elapsed_s) + eta_s))), eta_s
