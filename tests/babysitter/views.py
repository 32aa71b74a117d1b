"""A view of a replica, for what is made from it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from babysitter.lifecycle import Lifecycle, ReplicaState, RestartPolicy
from babysitter.memory import Memory
from babysitter.run_meta import Jobs
from babysitter.slots import Slots
from babysitter.spec import Addresses, JobRules, LogRules, Spec
from babysitter.view import Moment, View, make_report
from common.wire.base import JsonObject
from common.wire.replica import Stage

SPEC = Spec(
    name="r1",
    label="vLLM",
    addresses=Addresses(bind="node1", local="node1", record="node1", endpoint="node1", port=8001, own_port=8002),
    policy=RestartPolicy(),
    logs=LogRules(Path("/nowhere/out"), Path("/nowhere/err")),
    jobs=JobRules(),
    workdir=Path("/nowhere"),
    heartbeat_s=5.0,
    start_interval_s=1.0,
    interval_s=5.0,
    look_timeout_s=2.0,
    grace_s=30.0,
    slots=Slots(1),
    metadata={"cache_type": "paged", "type": "ignored"},
    weight=2.0,
)
MODELS: tuple[JsonObject, ...] = ({"id": "m", "object": "model", "max_model_len": 9},)


def view_of(
    state: ReplicaState = ReplicaState.READY,
    *,
    spec: Spec = SPEC,
    models: Sequence[JsonObject] = MODELS,
    compile_jobs: Sequence[str] = (),
    stages: Sequence[Stage] = (),
    diagnostics: Any = None,
    error: str | None = None,
    restarts: int = 0,
    serves: bool = False,
    **now: Any,
) -> View:
    """The replica in `state`; `now` are members of `Moment`."""
    memory = Memory(
        instance_id="11111111-1111-4111-8111-111111111111",
        incarnation=5,
        created_at="2026-01-01T00:00:00.000Z",
        models=list(models),
        stages=list(stages),
        diagnostics=diagnostics,
    )
    memory.jobs.add("a1", Jobs(compile=tuple(compile_jobs)))
    spec = replace(spec, diagnostics=diagnostics is not None)
    moment = Moment(**{"port": 8001, "updated_at": "2026-01-01T00:00:01.000Z", **now})
    report = make_report(spec, Lifecycle(state=state, error=error, restarts=restarts), memory, moment)
    return View(spec=spec, state=state, report=report, models=memory.models, serves=serves)
