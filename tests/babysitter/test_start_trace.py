"""A start of the server as a trace."""

import itertools

from babysitter.start_trace import start_spans
from common.span import Span
from common.wire.replica import Stage, Transition
from common.wire.words import StageState


def moved(second: float, before: str, after: str, lasted_s: float, cause: str = "as it should") -> Transition:
    at = f"2026-11-21T10:00:{second:06.3f}Z"
    return Transition(at=at, before=before, after=after, cause=cause, lasted_s=lasted_s)


def stage(second: int, name: str, took_s: float, state: str = "done", detail: str = "") -> Stage:
    began_at = f"2026-11-21T10:00:{second:02d}Z"
    return Stage(name=name, state=StageState(state), began_at=began_at, took_s=took_s, detail=detail)


GOOD = [
    moved(1, "pending", "creating", 0.5),
    moved(11, "creating", "starting", 10.0),
    moved(12, "starting", "waiting_for_ready", 1.0),
    moved(20, "waiting_for_ready", "ready", 8.0),
]
STAGES = [stage(1, "venv", 2.0), stage(3, "install", 8.0)]


def spans(timeline: list[Transition], stages: list[Stage] | None = None) -> list[Span]:
    ids = itertools.count(1)
    return start_spans(
        timeline, stages or [], replica="qwen", attributes={"backend": "vLLM"}, new_id=lambda _bits: next(ids)
    )


def test_a_good_start_is_one_trace_with_its_states_and_stages() -> None:
    made = spans(GOOD, STAGES)
    root = made[0]
    by_name = {span.name: span for span in made}
    assert list(by_name) == ["start qwen", "creating", "stage venv", "stage install", "starting", "waiting_for_ready"]
    assert {span.trace_id for span in made} == {root.trace_id}
    assert len({span.span_id for span in made}) == len(made)
    assert (root.parent_id, root.error, root.attributes["inference.state"]) == (None, None, "ready")
    assert root.ended_at - root.began_at == 19.0
    assert by_name["creating"].parent_id == by_name["starting"].parent_id == root.span_id
    assert by_name["stage install"].parent_id == by_name["creating"].span_id
    assert by_name["stage install"].ended_at == by_name["creating"].ended_at


def test_a_start_that_goes_on_makes_nothing() -> None:
    assert spans(GOOD[:-1]) == spans([]) == []


def test_a_move_that_ends_no_start_makes_nothing() -> None:
    assert spans([*GOOD, moved(40, "ready", "unhealthy", 20.0)]) == []


def test_a_failed_start_says_why() -> None:
    failed = [stage(1, "venv", 2.0), stage(3, "resolve", 8.0, "failed", "no such version")]
    made = spans([GOOD[0], moved(11, "creating", "failed", 10.0, "deployment failed")], failed)
    assert (made[0].error, made[-1].name, made[-1].error) == ("deployment failed", "stage resolve", "no such version")


def test_a_second_start_is_a_trace_of_its_own_without_the_old_stages() -> None:
    again = [
        *GOOD,
        moved(30, "ready", "backing_off", 10.0),
        moved(31, "backing_off", "starting", 1.0),
        moved(33, "starting", "waiting_for_ready", 2.0),
        moved(34, "waiting_for_ready", "ready", 1.0),
    ]
    made = spans(again, STAGES)
    assert [span.name for span in made] == ["start qwen", "starting", "waiting_for_ready"]
    assert made[0].ended_at - made[0].began_at == 3.0
