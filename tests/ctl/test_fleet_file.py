"""Fleet files, the flags of `run`, and what becomes of a folder of babysitter files."""

import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.wire.specification import DeploymentSpec
from ctl.fleet_file import UnusableFleet, deployments, parameters, replica_range
from ctl.from_configs import BARE, FLAGS, MODEL_KEYS, WORK_DIRS, UnusableConfigs, fleet

EXAMPLES = Path(__file__).parents[2] / "config"


def test_each_fault_of_a_fleet_file_is_said_with_its_deployment_and_member() -> None:
    with pytest.raises(UnusableFleet) as caught:
        deployments(
            {
                "deployments": {
                    "a": {"template": "mock", "replicas": {"min": 3, "max": 1}},
                    "b": {"template": "mock", "replica": 2},
                    "c": {},
                    "d": 7,
                    "e": {"template": "mock", "model": "same"},
                    "same": {"template": "mock"},
                }
            }
        )
    said = str(caught.value).splitlines()
    assert said == [
        "a: replicas: max must be at least min",
        "b: replica: Extra inputs are not permitted",
        "c: needs either template or request",
        "d: must be a table, not int",
        "same: model 'same' is e's already; one deployment for each model",
    ]


@pytest.mark.parametrize("content", [{}, {"deployments": []}, {"deployment": {}}, {"deployments": {}, "x": 1}])
def test_a_table_of_another_shape_is_no_fleet_file(content: dict[str, Any]) -> None:
    with pytest.raises(UnusableFleet, match="deployments"):
        deployments(content)


def test_a_range_of_replicas() -> None:
    assert replica_range("2") == {"min": 2, "max": 2}
    assert replica_range("0..3") == {"min": 0, "max": 3}
    for wrong in ("0", "3..1", "a", "1..", "-1", "1...2"):
        with pytest.raises(ValueError, match=r"range|most"):
            replica_range(wrong)


def test_values_are_of_the_schemas_type_or_as_they_look() -> None:
    schema = {"properties": {"model": {"type": "string"}, "adapters": {"type": "array"}}}
    assert parameters(["model=7", "adapters=a,b", "n=7", "x=1.5", "on=true", "w=a=b", "z={}"], schema) == {
        "model": "7",
        "adapters": ["a", "b"],
        "n": 7,
        "x": 1.5,
        "on": True,
        "w": "a=b",
        "z": "{}",
    }
    with pytest.raises(ValueError, match="KEY=VALUE"):
        parameters(["model"], {})


def test_every_shipped_configuration_becomes_a_deployment_and_loses_nothing() -> None:
    files = sorted([*EXAMPLES.glob("*.toml"), *EXAMPLES.glob("examples/*.toml")])
    read = [(file.name, tomllib.loads(file.read_text())) for file in files if file.name != "cbclient.toml"]
    text = fleet(read)
    made = deployments(yaml.safe_load(text))
    assert len(made) == len(read)
    for spec in made.values():
        DeploymentSpec.model_validate(spec)
    assert made["qwen-7b"]["template"] == "vllm"
    assert made["qwen-7b"]["accelerators"] == 1
    assert made["qwen-7b"]["parameters"]["max_model_len"] == 8192
    assert made["llama-8b"]["template"] == "llama-cpp"
    assert made["own-server"]["template"] == "own-server"  # a command: its node's operator puts it there
    assert made["9g-8b"]["model"] == "9g_8b_thinking"
    for _, content in read:
        for key, value in content.items():
            assert key in ("backend", "models", "expected_models", "name") or key in text, (key, value)
        for arg in content["backend"].get("args", ()):
            flag = arg.removeprefix("--").replace("-", "_")
            said_by_template = arg in ("--ndev", "--metrics", "--alias", "--host", "127.0.0.1")
            assert flag in text or arg in text or arg == str(content["port"]) or said_by_template, arg


def test_the_template_in_the_comment_is_toml_with_the_replicas_own_port() -> None:
    backend = {"type": "command", "command": 'x "y"', "args": ["-p", "81", "--n=811", "a\nb {c}"]}
    text = fleet([("a.toml", {"name": "a b", "port": 81, "backend": backend, "metadata": {"k.x": {"y": True}}})])
    lines = [line.removeprefix("  #     ") for line in text.splitlines() if line.startswith("  #     ")]
    template = tomllib.loads("\n".join(lines))
    assert template["backend"] == {**backend, "args": ["-p", "{port}", "--n=811", "a\nb {{c}}"]}
    assert template["metadata"] == {"k.x": {"y": True}}
    assert list(yaml.safe_load(text)["deployments"]) == ["a-b"]


def test_files_that_differ_in_place_only_are_replicas_of_one() -> None:
    def vllm(name: str, device: str, port: int, model: str = "m", **args: Any) -> tuple[str, dict[str, Any]]:
        backend = {"type": "vLLM", "model": model, "env": {"HIP_VISIBLE_DEVICES": device}, **args}
        return f"{name}.toml", {"name": name, "port": port, "backend": backend}

    text = fleet([vllm("a", "0,1", 1), vllm("b", "2,3", 3), vllm("c", "4", 5), vllm("d", "5", 7, "other")])
    made = yaml.safe_load(text)["deployments"]
    assert made["a"]["replicas"] == {"min": 2, "max": 2}
    assert made["a"]["accelerators"] == 2
    assert "b" not in made
    assert made["c"]["model"] == "c"  # one deployment for each model; said in a comment
    assert "model 'm' is a's" in text
    assert made["d"]["model"] == "other"


def test_what_is_no_babysitters_file_is_refused() -> None:
    with pytest.raises(UnusableConfigs, match=r"x.toml: backend.type"):
        fleet([("x.toml", {"name": "x"})])
    one = {"name": "x", "backend": {"type": "mock", "models": ["a"]}}
    with pytest.raises(UnusableConfigs, match=r"y.toml: name 'x'"):
        fleet([("x.toml", one), ("y.toml", {**one, "backend": {"type": "mock", "models": ["b"]}})])


@pytest.mark.parametrize("name", sorted({*FLAGS, *BARE, *WORK_DIRS, *MODEL_KEYS}))
def test_what_is_known_of_a_shipped_template_is_what_it_says(name: str) -> None:
    """Else a file's flag would become a parameter that the template does not have, or another one."""
    template = tomllib.loads((EXAMPLES / "templates" / f"{name}.toml").read_text())
    parameters_, backend = template["parameters"], template["backend"]
    words = [word for entry in backend.get("args", ()) for word in ([entry] if isinstance(entry, str) else entry)]
    said = {
        flag: place for word in words if word.startswith("--") for flag, mark, place in [word.partition("=")] if mark
    }
    said |= {flag: place for flag, place in pairwise(words) if flag.startswith("--") and not place.startswith("--")}
    places = {"=accelerators": "{accelerators}", "=model": "{served_name}"}
    for flag, parameter in FLAGS.get(name, {}).items():
        place = places.get(parameter, f"{{{parameter or flag.removeprefix('--')}}}")
        assert said.get(flag, place) == place, flag
        assert place in said.values(), flag
        assert flag in said or not flag.startswith("--"), flag
        if parameter and not parameter.startswith("="):
            assert parameter in parameters_, flag
    for flag, parameter in BARE.get(name, {}).items():
        assert flag in words, flag
        assert not parameter or (parameters_[parameter]["type"], f"{{{parameter}?}}" in words) == ("boolean", True)
    assert backend.get("work_dir") == WORK_DIRS.get(name)
    if name in MODEL_KEYS:
        key, parameter = MODEL_KEYS[name]
        assert backend[key] == f"{{{parameter}}}"
        assert parameter in parameters_
