"""What we write ourselves always fits into what our registry takes."""

from typing import Any

import msgspec
import pytest

from babysitter import fitting, records
from babysitter import view as answers
from babysitter.events import LOG_TAIL_LIMIT_BYTES
from common.discovery.limits import BODY_LIMIT_BYTES
from common.wire.replica import Stage
from common.wire.words import StageState
from registry.http.bodies import RegisterBody, parse
from tests.babysitter.views import view_of

ADAPTERS = tuple(
    {"id": f"adapter-{number}", "object": "model", "root": f"/models/lora/{number}", "permission": [{"id": "x" * 600}]}
    for number in range(16)
)
MANY = tuple({"id": f"organisation/model-name-of-some-length-{n}", "object": "model"} for n in range(2000))
LARGE = tuple({"id": f"m{number}", "description": "d" * 3000} for number in range(338))
ENDLESS = tuple({"id": f"{number}" + "n" * 400} for number in range(5000))


@pytest.mark.parametrize("models", [ADAPTERS, MANY, LARGE, ENDLESS], ids=["adapters", "many", "large", "endless"])
def test_record_of_any_list_of_models_is_taken_by_the_registry_W16(models: tuple[dict[str, Any], ...]) -> None:
    view = view_of(models=models)
    record = records.server_registration(view)
    taken = parse(RegisterBody, msgspec.json.decode(msgspec.json.encode(record)))
    told, left_out = taken.metadata["models"], taken.metadata.get("models_left_out", 0)
    assert told == [model["id"] for model in models[: len(told)]]
    assert len(told) + left_out == len(models)
    assert len(msgspec.json.encode(records.server_heartbeat(view))) < BODY_LIMIT_BYTES
    assert not left_out or models is ENDLESS


def test_model_objects_stand_in_the_record_or_else_in_the_report_W16() -> None:
    few, several = view_of(models=ADAPTERS[:2]), view_of(models=ADAPTERS)
    record = records.server_registration(few)
    assert record is not None
    assert record.metadata["models_list"] == list(ADAPTERS[:2])
    assert records.server_heartbeat(few).models_list is msgspec.UNSET
    too_large = records.server_registration(several)
    assert too_large is not None
    assert "models_list" not in too_large.metadata
    assert records.server_heartbeat(several).models_list == list(ADAPTERS)
    assert records.own_heartbeat(several).models_list is msgspec.UNSET


def test_report_with_more_than_a_registry_takes_leaves_out_what_matters_least_W16() -> None:
    diagnostics = {"text": "d" * (1 << 20)}
    stages = [Stage(name="s", state=StageState.DONE, began_at="t")]
    jobs = tuple(f"wsjob-{number:08}" for number in range(50))
    error = "e" * LOG_TAIL_LIMIT_BYTES
    beat = records.own_heartbeat(view_of(diagnostics=diagnostics, stages=stages, compile_jobs=jobs, error=error))
    assert len(msgspec.json.encode(beat)) < BODY_LIMIT_BYTES
    assert (beat.left_out, beat.diagnostics, beat.stages) == (["diagnostics"], {}, stages)
    assert beat.compile_wsjob == list(jobs)
    many = tuple(f"wsjob-{number:020}" for number in range(30_000))
    endless = view_of(diagnostics=diagnostics, stages=stages, compile_jobs=many, error=error)
    assert len(msgspec.json.encode(records.own_heartbeat(endless))) < BODY_LIMIT_BYTES


def test_model_whose_restless_members_changed_is_the_same_model_W15() -> None:
    before = [{"id": "m", "created": 1, "permission": [{"id": "a"}], "root": "/x"}]
    again = [{"id": "m", "created": 2, "permission": [{"id": "b"}], "root": "/x"}]
    assert fitting.kept_models(again, before) == before
    swapped = [{"id": "m", "created": 2, "root": "/y"}]
    assert fitting.kept_models(swapped, before) == swapped
    assert fitting.kept_models([*again, {"id": "lora"}], before) == [*before, {"id": "lora"}]


def test_models_too_large_to_remember_are_remembered_by_name_W16() -> None:
    large = [{"id": f"m{number}", "description": "d" * 5000} for number in range(1000)]
    assert fitting.kept_models(large, [])[7] == {"id": "m7", "object": "model"}
    assert len(fitting.kept_models([{"id": str(number)} for number in range(20_000)], [])) == fitting.MOST_MODELS


def test_server_that_no_registry_takes_says_so_wherever_it_is_asked_W16() -> None:
    refused = view_of(registration_error="400: too long")
    assert answers.health(refused, "now").status == "unregistered"
    assert answers.health(refused, "now").registration_error == "400: too long"
    assert refused.report.error_message == "not registered: 400: too long"
    assert answers.health(view_of(), "now").status == "healthy"
    broken = view_of(registration_error="400: too long", error="its own trouble")
    assert broken.report.error_message == "its own trouble"
