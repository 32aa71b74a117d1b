"""PURE: the stages of a deployment, as an operator sees them: name, state, duration, and what goes on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

DETAIL_LIMIT = 300


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. `state` is `running`, `done`, `reused` or `failed`; `began_at` is ISO 8601; `took_s` grows."""

    name: str
    state: str
    began_at: str
    took_s: float = 0.0
    attempt: int = 1
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the state file and `/timeline`."""
        return asdict(self)

    def says(self, detail: str) -> "Stage":
        """The same stage with the latest news."""
        return replace(self, detail=detail[:DETAIL_LIMIT])


def put(stages: list[dict[str, Any]], stage: Stage) -> list[dict[str, Any]]:
    """`stages` with `stage` in its place: a stage of the same name is the same stage."""
    told: Mapping[str, Any] = stage.to_json()
    names = [known.get("name") for known in stages]
    if stage.name in names:
        return [dict(told) if known.get("name") == stage.name else known for known in stages]
    return [*stages, dict(told)]
