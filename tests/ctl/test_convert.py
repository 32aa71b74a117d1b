"""A model configuration as a create request."""

import json
from pathlib import Path, PurePosixPath

import pytest
import yaml

from babysitter.cbclient.params import effective_config
from babysitter.cbclient.request import CheckedRequest
from ctl.codes import Code
from ctl.convert import RequestFlags, UnusableConfig, from_model_config, laid_over
from tests.ctl.conftest import Suite

CONFIG = """
runconfig:
  transfer_processes: 8
  job_priority: p1
  job_time_sec: 3600
  job_labels: [team=inference, purpose=release]
model:
  name: llama3.1-8b
  released: 2025-01-31
  R: {decoders: 8}
tokenizer: {tokenizer_path: /opt/tokenizer}
replica: {concurrent_prompts: 4}
"""


def test_priority_timeout_and_labels_come_from_runconfig() -> None:
    config = yaml.safe_load(CONFIG)
    made = from_model_config(config, RequestFlags(app_tag="build-1", multibox="dh1", namespace="inf"))
    assert made["job"] == {
        "job_priority": "p1",
        "job_timeout_s": 3600,
        "job_labels": ["team=inference", "purpose=release"],
    }
    assert made["server_mode"] == "replica"
    assert made["model_name"] == "llama3.1-8b"
    assert made["placement"] == {"multibox": "dh1", "namespace": "inf", "app_tag": "build-1"}
    assert made["full_config"]["runconfig"] == config["runconfig"]
    assert made["full_config"]["model"]["released"] == "2025-01-31"
    json.dumps(made)


def test_flags_stand_over_the_file_and_labels_add_to_it() -> None:
    chosen = RequestFlags(
        priority="p3", timeout_s=60, labels=("a=b",), model_name="other", server_mode="replica_mock", node="n"
    )
    made = from_model_config(yaml.safe_load(CONFIG), chosen)
    assert made["job"]["job_priority"] == "p3"
    assert made["job"]["job_timeout_s"] == 60
    assert made["job"]["job_labels"][-1] == "a=b"
    assert (made["model_name"], made["server_mode"], made["placement"]["node"]) == ("other", "replica_mock", "n")


def test_a_request_has_the_old_converters_members_where_nothing_is_said_W41() -> None:
    made = from_model_config({"model": {"name": "m"}}, RequestFlags())
    assert made == {
        "server_mode": "replica",
        "model_name": "m",
        "placement": {"namespace": "inf-integ"},
        "full_config": {"model": {"name": "m"}},
        "job": {"job_priority": "p2", "job_timeout_s": 86400, "job_labels": None},
        "wait_for_ready": True,
        "run_diagnostics": False,
    }
    assert from_model_config({"model": {"name": "m"}}, RequestFlags(labels=("a=b",)))["job"]["job_labels"] == ["a=b"]
    tagged = from_model_config({"model": {"name": "m"}}, RequestFlags(app_tag="build-1"))
    assert tagged["cbclient_config"] == {"app_tag": "build-1", "use_uv": True}
    assert tagged["placement"]["app_tag"] == "build-1"
    CheckedRequest.model_validate({**tagged, "job": None})


async def test_from_yaml_takes_the_old_converters_flags_W41(suite: Suite, tmp_path: Path) -> None:
    file = tmp_path / "model_config.yaml"
    file.write_text(CONFIG)
    flags = "--server-mode catalog --multibox dh2 --namespace other --app-tag build-1 --no-wait --run-diagnostics --no-use-uv"
    done = await suite.ctl("request", "from-yaml", str(file), *flags.split())
    assert done.code == 0
    made = done.json
    assert (made["server_mode"], made["wait_for_ready"], made["run_diagnostics"]) == ("catalog", False, True)
    assert made["placement"] == {"namespace": "other", "multibox": "dh2", "app_tag": "build-1"}
    assert made["cbclient_config"] == {"app_tag": "build-1", "use_uv": False}
    for flag, said in (("--no-wait-for-ready", False), ("--wait-for-ready", True)):
        assert (await suite.ctl("request", "from-yaml", str(file), flag)).json["wait_for_ready"] is said


@pytest.mark.parametrize(
    ("labels", "expected"), [({"a": 1, "b": "x"}, ["a=1", "b=x"]), ("a=1, b=x", ["a=1", "b=x"]), ([1], ["1"])]
)
def test_labels_may_be_written_in_any_way(labels: object, expected: list[str]) -> None:
    made = from_model_config({"model": {"name": "m"}, "runconfig": {"job_labels": labels}}, RequestFlags())
    assert made["job"]["job_labels"] == expected


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "model.name is missing"),
        ({"model": []}, "model must be a table"),
        ({"model": {"name": "m"}, "runconfig": {"job_time_sec": "soon"}}, "runconfig.job_time_sec must be a number"),
        ({"model": {"name": "m"}, "runconfig": {"job_labels": 5}}, "job_labels must be a list"),
    ],
)
def test_what_cannot_become_a_request_names_its_key(config: dict[str, object], said: str) -> None:
    with pytest.raises(UnusableConfig, match=said):
        from_model_config(config, RequestFlags())


def test_uv_needs_a_build() -> None:
    with pytest.raises(UnusableConfig, match="--app-tag"):
        laid_over({}, RequestFlags(use_uv=True))
    made = laid_over({"placement": {"app_tag": "t"}}, RequestFlags(use_uv=True))
    assert made["cbclient_config"] == {"use_uv": True, "app_tag": "t"}


async def test_from_yaml_prints_a_request_that_create_takes(suite: Suite, tmp_path: Path) -> None:
    file = tmp_path / "model_config.yaml"
    file.write_text(CONFIG)
    done = await suite.ctl("request", "from-yaml", str(file), "--app-tag", "build-1", "--multibox", "dh1")
    assert done.code == 0
    target = tmp_path / "request.json"
    written = await suite.ctl(
        "request", "from-yaml", str(file), "--app-tag", "build-1", "--multibox", "dh1", "-o", str(target)
    )
    assert written.code == 0
    assert json.loads(target.read_text()) == done.json
    suite.answers["registry POST /api/v1/replicas"] = (201, {"replica_id": "abc123def456", "status": "pending"})
    created = await suite.ctl("replicas", "create", "-f", str(target))
    assert created.stdout == "abc123def456\n"
    assert suite.calls("registry POST /api/v1/replicas") == [done.json]


@pytest.mark.parametrize("text", ["a: [", "- list", "\x00"])
async def test_a_file_that_is_no_configuration_is_one_line(suite: Suite, tmp_path: Path, text: str) -> None:
    file = tmp_path / "model_config.yaml"
    file.write_text(text)
    done = await suite.ctl("request", "from-yaml", str(file))
    assert done.code == Code.CONFIG
    assert len(done.stderr.splitlines()) == 1
    assert str(file) in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        '{"model": {"name": "m", "rate": 1e-5, "path": "a\\/b"}}',
        '{"model":\t{"name": "m", "rate": 1e-5, "path": "a/b"}}',
    ],
)
async def test_json_is_read_as_json_whatever_yaml_would_make_of_it(suite: Suite, tmp_path: Path, text: str) -> None:
    file = tmp_path / "model.json"
    file.write_text(text)
    done = await suite.ctl("request", "from-yaml", str(file))
    assert done.json["full_config"] == {"model": {"name": "m", "rate": 1e-5, "path": "a/b"}}


@pytest.mark.parametrize("timeout_key", ["job_timeout_s", "job_time_sec", "job_timeout"])
def test_flags_stand_over_the_files_own_runconfig_as_far_as_params_yaml(timeout_key: str) -> None:
    """A release server lets runconfig stand over `job`; ours does not: the flag wins with either."""
    runconfig = {"job_priority": "p1", timeout_key: 3600, "job_labels": ["team=a", "kept=1"], "other": 5}
    flags = RequestFlags(priority="p3", timeout_s=60, labels=("team=b",))
    said = {"job_priority": "p3", timeout_key: 60, "job_labels": ["team=b", "kept=1"]}
    config = {"model": {"name": "m"}, "runconfig": runconfig}
    for made in (
        from_model_config(config, flags),
        laid_over({"server_mode": "replica", "model_name": "m", "full_config": config}, flags),
    ):
        assert made["full_config"]["runconfig"] == {**runconfig, **said}
        for sent in (made, {**made, "job": None}):  # None: as one that only reads runconfig
            request = CheckedRequest.model_validate(sent)
            params = effective_config(request, workdir=PurePosixPath("/w"), image=None)
            assert {key: params["runconfig"][key] for key in said} == said
    assert runconfig["job_priority"] == "p1"
