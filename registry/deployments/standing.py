"""PURE. How every deployment stands after planning, in one word and with the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec import UNSET

from common.wire.deployment import DeploymentPhase, Standing
from registry.deployments.crew import Crew
from registry.deployments.model import Memory, Setback

RETRIES_WITHIN_S = 60.0
"""Whose clients were told to come again keeps its place in the line for so long."""
QUEUED, UNSCHEDULABLE = DeploymentPhase.QUEUED, DeploymentPhase.UNSCHEDULABLE
ROLLING = DeploymentPhase.ROLLING


@dataclass(frozen=True, slots=True)
class Note:
    """Why a deployment does not have what it wants; `coming`: a place is being made for it."""

    kind: DeploymentPhase
    reason: str
    coming: bool = False


def failing(setback: Setback, now: float) -> Note:
    """Every node that may have it waits after failed starts."""
    wait_s = max(0.0, setback.until - now)
    return Note(DeploymentPhase.FAILING, f"{_failed(setback)}; the next is tried in {wait_s:.0f} s")


def _failed(setback: Setback) -> str:
    times = "a start" if setback.failures == 1 else f"{setback.failures} starts"
    return f"{times} failed on node {setback.node}: {setback.reason}"


def standings(
    order: Sequence[Crew],
    notes: Mapping[str, Note],
    *,
    setbacks: Sequence[Setback],
    memory: Memory,
    new: Memory,
    now: float,
) -> dict[str, Standing]:
    """By name; those that wait for accelerators have their place in `order`, from 1."""
    found: dict[str, Standing] = {}
    failed = {one.deployment: one for one in setbacks}
    position = 0
    for crew in order:
        name, note = crew.wish.name, notes.get(crew.wish.name)
        queued = note is not None and note.kind is QUEUED
        if (note is not None and note.kind is not ROLLING and crew.want.count) or _comes_again(crew, memory, now):
            new.queued_since[name] = memory.queued_since.get(name, now)
        position += queued
        found[name] = _standing(crew, note, position if queued else None, failed.get(name))
    return found


def _comes_again(crew: Crew, memory: Memory, now: float) -> bool:
    last = None if crew.traffic is None else crew.traffic.last_request_at
    waited = crew.wish.name in memory.queued_since and not crew.present
    return waited and last is not None and now - last < RETRIES_WITHIN_S


def _standing(crew: Crew, note: Note | None, position: int | None, failed: Setback | None) -> Standing:
    ready = crew.ready
    awake = sum(1 for one in crew.alive if not one.asleep)
    starting = awake - ready + crew.started + len(crew.woken)
    asleep = len(crew.sleepers) + len(crew.put_to_sleep)
    phase = _phase(crew, note, ready, starting, asleep)
    reason = note.reason if note is not None else (crew.want.why or None)
    if phase is DeploymentPhase.STARTING and reason is None:
        silent = next((one.assignment.node for one in crew.alive if one.silent and one.replica is not None), None)
        if failed is not None:
            reason = f"tried again: {_failed(failed)}"
        elif silent is not None:
            reason = f"nothing is heard of its replica on node {silent}"
    return Standing(
        phase=phase,
        reason=reason,
        wanted=crew.want.count,
        ready=ready,
        starting=starting,
        asleep=asleep,
        leaving=len(crew.leaving),
        position=UNSET if position is None else position,
    )


def _phase(crew: Crew, note: Note | None, ready: int, starting: int, asleep: int) -> DeploymentPhase:
    if crew.wish.deleted:
        return DeploymentPhase.STOPPING
    if ready:
        return DeploymentPhase.ROLLING if crew.old else DeploymentPhase.READY
    if starting:
        return DeploymentPhase.STARTING
    if note is not None:
        return note.kind
    if asleep:
        return DeploymentPhase.ASLEEP
    return DeploymentPhase.STOPPING if crew.leaving else DeploymentPhase.COLD
