"""PURE: the stages of a deployment, as an operator sees them: each once, with its latest news."""

from collections.abc import Sequence

from msgspec.structs import replace

from common.wire.replica import Stage

DETAIL_LIMIT = 300


def with_detail(stage: Stage, detail: str) -> Stage:
    """The same stage with the latest news."""
    return replace(stage, detail=detail[:DETAIL_LIMIT])


def put(stages: Sequence[Stage], stage: Stage) -> list[Stage]:
    """`stages` with `stage` in its place: a stage of the same name is the same stage."""
    if any(one.name == stage.name for one in stages):
        return [stage if one.name == stage.name else one for one in stages]
    return [*stages, stage]
