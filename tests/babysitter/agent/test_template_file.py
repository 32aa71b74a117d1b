"""Templates as files, and the judging of parameters: nothing that a request says becomes more than one argument, or a flag."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli

from babysitter.agent import template_shown
from babysitter.agent.template_file import TemplateError, TemplateFile, judged, parse, render
from babysitter.agent.templates import SHIPPED, Template, TemplateFolder, read
from common.wire.deployment import RELEASE_SERVER

BUILT_IN: dict[str, Any] = {"served_name": "m", "accelerators": 0, "port": 2000, "host": "127.0.0.1"}
HEAD = """
description = "d"
[parameters.model]
required = true
[parameters.size]
type = "integer"
minimum = 1
[parameters.extra]
type = "strings"
[parameters.loud]
type = "boolean"
default = false
[backend]
type = "command"
"""


def template(text: str) -> TemplateFile:
    return parse(tomli.loads(text))


def server(file: TemplateFile, **given: Any) -> dict[str, Any]:
    values, wrong = judged(file, given)
    assert wrong == {}
    return dict(render(file, {**values, **BUILT_IN})["backend"])


# Rendering.

ARGS = HEAD + (
    'command = "serve"\n'
    'args = ["{model}", "--alias={served_name}", ["--size", "{size}"], ["{loud?}", "--loud"], ["--", "{extra}"], "{{model}}"]\n'
    'env = { MODEL = "m={model}", SIZE = "{size}" }\n'
)


@pytest.mark.parametrize(
    "model",
    [
        "a b",
        "a; rm -rf /",
        "$(reboot)",
        "`id`",
        "a' --trust-remote-code '",
        'a" "b',
        "{size}",
        "{{model}}",
        "a\u00a0b",
        "*",
    ],
)
def test_a_parameter_is_one_argument_whatever_it_holds(model: str) -> None:
    backend = server(template(ARGS), model=model)
    assert backend["args"] == [model, "--alias=m", "{model}"]
    assert backend["env"] == {"MODEL": f"m={model}"}
    assert backend["command"] == "serve"


def test_a_list_is_left_out_when_a_parameter_in_it_is_unset_and_a_switch_when_it_is_false() -> None:
    file = template(ARGS)
    assert server(file, model="x", size=5, loud=True, extra=["a b", "c"])["args"] == [
        "x", "--alias=m", "--size", "5", "--loud", "--", "a b", "c", "{model}",
    ]  # fmt: skip
    assert server(file, model="x", size=5)["env"] == {"MODEL": "m=x", "SIZE": "5"}


def test_no_accelerators_leave_their_list_out() -> None:
    file = template(HEAD + 'command = "serve"\nargs = [["--tp", "{accelerators}"], "--n={accelerators}"]\n')
    assert server(file, model="x")["args"] == ["--n=0"]
    values, _ = judged(file, {"model": "x"})
    assert render(file, {**values, **BUILT_IN, "accelerators": 2})["backend"]["args"] == ["--tp", "2", "--n=2"]


# Judging.


@pytest.mark.parametrize(
    ("given", "field", "problem"),
    [
        ({}, "model", "is needed"),
        ({"model": None}, "model", "is needed"),
        ({"model": ""}, "model", "must not be empty"),
        ({"model": "--trust-remote-code"}, "model", "may not begin with -"),
        ({"model": "a\nb"}, "model", "control characters"),
        ({"model": "a\0b"}, "model", "control characters"),
        ({"model": "a\x9bb"}, "model", "control characters"),
        ({"model": "a\udc80"}, "model", "control characters"),
        ({"model": "a" * 4097}, "model", "4096 characters"),
        ({"model": 5}, "model", "must be a string"),
        ({"model": ["a"]}, "model", "must be a string"),
        ({"model": "x", "size": "5"}, "size", "must be an integer"),
        ({"model": "x", "size": 5.0}, "size", "must be an integer"),
        ({"model": "x", "size": True}, "size", "must be an integer"),
        ({"model": "x", "size": 0}, "size", "must be at least 1"),
        ({"model": "x", "loud": "true"}, "loud", "must be true or false"),
        ({"model": "x", "loud": 1}, "loud", "must be true or false"),
        ({"model": "x", "extra": "a"}, "extra", "must be a list of strings"),
        ({"model": "x", "extra": ["a", 5]}, "extra", "must be a list of strings"),
        ({"model": "x", "extra": ["-a"]}, "extra", "may not begin with -"),
        ({"model": "x", "extra": ["a"] * 65}, "extra", "64 members"),
        (
            {"model": "x", "command": "sh"},
            "command",
            "no parameter of the template; there are: model, size, extra, loud",
        ),
        ({"model": "x", "port": 5}, "port", "no parameter of the template"),
    ],
)
def test_what_is_wrong_with_a_parameter_is_told_by_its_name(given: dict[str, Any], field: str, problem: str) -> None:
    _, wrong = judged(template(ARGS), given)
    assert list(wrong) == [field]
    assert problem in wrong[field]


def test_choices_patterns_and_limits_are_kept() -> None:
    file = template("""
[parameters.kind]
choices = ["a", "b"]
[parameters.path]
pattern = "/models/[a-z]+"
[parameters.share]
type = "number"
maximum = 0.5
[parameters.flag]
allow_dash = true
[backend]
type = "mock"
models = ["m"]
""")
    assert judged(file, {"kind": "a", "path": "/models/x", "share": 0.5, "flag": "-x"})[1] == {}
    _, wrong = judged(file, {"kind": "c", "path": "/models/x/../../etc", "share": 1})
    assert wrong == {
        "kind": "must be one of a, b", "path": "must match /models/[a-z]+", "share": "must be at most 0.5"
    }  # fmt: skip


# Files that are no template.


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("description = 5", "description"),
        ("[backend]\ntype = 'cbclient'\nrequest = '/x'", "backend.type"),
        ("[backend]\ntype = 'shell'\ncommand = 'x'", "backend"),
        (HEAD + "command = '{model}'", "backend.command: may have no parameter"),
        (HEAD + "command = 'serve'\nwork_dir = '/x/{model}'", "backend.work_dir: may have no parameter"),
        (HEAD + "command = 'serve'\nargs = ['{modle}']", "no parameter is called 'modle'"),
        (HEAD + "command = 'serve'\nargs = ['{size}']", "may be unset"),
        (HEAD + "command = 'serve'\nargs = ['{loud?}']", "belongs into a list"),
        (HEAD + "command = 'serve'\nargs = ['a{extra}']", "must be a whole argument"),
        (HEAD + "command = 'serve'\nargs = 'x'", "must be a list"),
        (HEAD + "command = 'serve'\nargs = [5]", "must be a list"),
        (HEAD + "command = 'sh'\nargs = ['-c', 'serve {model}']", "would be a program"),
        (HEAD + "command = '/bin/bash -lc'\nargs = ['serve {model}']", "would be a program"),
        (HEAD + "command = 'env'\nargs = ['bash', '-c', '{model}']", "would be a program"),
        (HEAD + "command = 'env python3 -c'\nargs = ['print({size})']", "would be a program"),
        (HEAD + "command = 'serve'\nmodel = 'x'", "model"),
        (HEAD + "command = 'serve'\nenv = { CUDA_VISIBLE_DEVICES = '0' }", "the agent says which accelerators"),
        (HEAD + "command = 'serve'\nenv = { MY_DEVICES = '0' }", "the agent says which accelerators"),
        (HEAD + 'command = "it\'s"', "backend.command"),
        (HEAD + "command = 'serve'\n[metadata]\nx = '{model}'", "metadata.x: may have no parameter"),
        (HEAD + "command = 'serve'\n[probes]\nno_such = 1", "no_such"),
        (HEAD + "command = 'serve'\n[surprise]\nx = 1", "surprise"),
        ("[parameters.port]\n[backend]\ntype='mock'\nmodels=['m']", "built in"),
        ("[parameters.Bad]\n[backend]\ntype='mock'\nmodels=['m']", "parameters"),
        (
            "[parameters.x]\ntype='integer'\ndefault='a'\n[backend]\ntype='mock'\nmodels=['m']",
            "default: must be an integer",
        ),
        ("[parameters.x]\nrequired=true\ndefault='a'\n[backend]\ntype='mock'\nmodels=['m']", "never be used"),
        ("[parameters.x]\npattern='('\n[backend]\ntype='mock'\nmodels=['m']", "pattern"),
        ("[parameters.x]\nminimum=1\n[backend]\ntype='mock'\nmodels=['m']", "for numbers"),
        ("this is no TOML", ""),
    ],
)
def test_a_file_that_is_no_template_says_why_and_costs_no_other(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "broken.toml").write_text(text)
    (tmp_path / "good.toml").write_text(ARGS)
    found = TemplateFolder(tmp_path, assigning="MY_DEVICES").read()
    assert found["good"].file is not None
    assert found["broken"].file is None
    assert found["broken"].error
    assert problem in found["broken"].error


def test_a_file_that_cannot_be_read_or_may_not_have_its_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "large.toml").write_text("#" * (65 << 10))
    (tmp_path / "latin.toml").write_bytes(b"description = '\xff'")
    (tmp_path / "two words.toml").write_text(ARGS)
    (tmp_path / "cbclient.toml").write_text(ARGS)
    (tmp_path / "gone.toml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no template")
    (tmp_path / "good.toml").write_text(ARGS)
    found = TemplateFolder(tmp_path).read()
    assert {name for name, one in found.items() if one.file} == {"good"}
    assert {name for name, one in found.items() if one.error} == {"large", "latin", "two words", "cbclient", "gone"}


ODD: list[Any] = [5, 0.5, True, "x", "{model}", [], ["x"], [["x", 5]], {}, {"a": 5}, {"a": {"b": ["{model}"]}}, None]


@pytest.mark.parametrize("member", [
    "type", "command", "args", "env", "work_dir", "model", "models", "model_path", "config_file",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["command", "vllm", "mock", "infinilm", "infinilm-rust"])
def test_no_file_makes_the_reading_of_it_fail(tmp_path: Path, kind: str, member: str) -> None:
    for number, odd in enumerate(ODD):
        backend = {"type": kind, "command": "serve", member: odd}
        text = json.dumps({"parameters": {"model": {"required": True}}, "backend": backend})
        (tmp_path / f"t{number}.toml").write_text(toml_of(json.loads(text)))
    found = TemplateFolder(tmp_path).read()
    assert len(found) == len(ODD)
    assert all(one.file is not None or one.error for one in found.values())


def toml_of(content: dict[str, Any]) -> str:
    """Inline TOML of a JSON object; what TOML has not (null) is left out."""
    return "\n".join(f"{name} = {inline(value)}" for name, value in content.items())


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {inline(it)}" for name, it in value.items() if it is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


# The folder.


def test_a_changed_file_is_read_again_and_its_digest_changes(tmp_path: Path) -> None:
    path, folder = tmp_path / "t.toml", TemplateFolder(tmp_path)
    path.write_text(ARGS)
    before = folder.read()["t"]
    assert folder.read()["t"] is before
    path.write_text(ARGS + "# changed")
    after = folder.read()["t"]
    assert after.digest != before.digest
    path.unlink()
    assert folder.read() == {}


def test_a_heartbeat_carries_no_more_than_it_may(tmp_path: Path) -> None:
    many = "".join(f'[parameters.p{n}]\ndescription = "{"x" * 300}"\n' for n in range(64))
    (tmp_path / "a.toml").write_text(many + '[backend]\ntype = "mock"\nmodels = ["m"]\n')
    for number in range(70):
        (tmp_path / f"b{number:02}.toml").write_text(ARGS)
    folder = TemplateFolder(tmp_path)
    glances = folder.glances()
    assert len(glances) == 64
    assert glances[0].parameters == {}
    assert glances[1].parameters["required"] == ["model"]
    assert next(folder.all()).parameters["properties"]["p63"]["type"] == "string"


def test_shipped_templates_are_whole_and_take_a_model() -> None:
    found = TemplateFolder(SHIPPED).read()
    assert sorted(found) == [
        "command-example", "infinilm", "infinilm-rust", "llama-cpp", "llama-cpp-rpc", "mock", "mock-group", "sglang-group",
        "transformers", "vllm", "vllm-group", "vllm-ray",
    ]  # fmt: skip
    for one in found.values():
        assert one.error == ""
        assert one.glance.parameters["required"] == ["model", *(["ray_address"] if one.name == "vllm-ray" else [])]
        assert one.glance.description
    assert [it.name for it in TemplateFolder(SHIPPED).all()][-1] == RELEASE_SERVER.name == "cbclient"
    assert "start_delay_s" in found["mock"].glance.parameters["properties"]


def test_the_schema_says_what_is_judged() -> None:
    glance = template_shown.glance("t", template(ARGS), "d")
    assert glance.parameters == {
        "type": "object",
        "properties": {
            "model": {"type": "string", "minLength": 1, "maxLength": 4096},
            "size": {"type": "integer", "minimum": 1},
            "extra": {"type": "array", "maxItems": 64, "items": {"type": "string", "minLength": 1, "maxLength": 4096}},
            "loud": {"type": "boolean", "default": False},
        },
        "required": ["model"],
        "additionalProperties": False,
    }


def test_sleep_is_the_babysitters_to_judge(tmp_path: Path) -> None:
    calls = {"sleep": "POST /sleep", "wake": 'POST /wake {"x": 1}'}
    words = "".join(f"{name} = '{text}'\n" for name, text in calls.items())
    (tmp_path / "t.toml").write_text(f"{ARGS}[sleep]\n{words}")
    one = read(tmp_path / "t.toml")
    assert one.file is not None, one.error
    assert one.glance.sleeps
    assert render(one.file, {**judged(one.file, {"model": "x"})[0], **BUILT_IN})["sleep"] == calls
    (tmp_path / "t.toml").write_text(ARGS + '[sleep]\nsleep = "POST /sleep"\n')
    assert "sleep and wake need each other" in read(tmp_path / "t.toml").error


# Groups.

GROUP = """
[parameters.model]
required = true
[needs]
accelerators = 2
[members]
followers = 3
listens = true
[members.backend]
type = "command"
command = "worker"
args = ["--port", "{port}", "--leader", "{leader_host}:{rendezvous_port}", "--rank={member_rank}"]
[backend]
type = "command"
command = "serve"
args = ["{model}", "--workers", "{follower_addresses}", ["{is_follower?}", "--headless"], "--of={member_count}"]
"""
HOSTS, PORTS = ["10.0.0.1", "10.0.0.2", "fd00::3"], [2000, 2002, 2004]


def member(file: TemplateFile, rank: int) -> dict[str, Any]:
    values = {"model": "m", **BUILT_IN, **template_shown.in_group(rank, HOSTS, PORTS, 2010)}
    return dict(render(file.of_rank(rank), values))


def test_each_member_of_a_group_is_told_its_rank_and_where_the_others_are() -> None:
    file = template(GROUP)
    assert member(file, 0)["backend"]["args"] == ["m", "--workers", "10.0.0.2:2002,[fd00::3]:2004", "--of=3"]
    follower = member(file, 2)
    assert follower["backend"]["args"] == ["--port", "2000", "--leader", "10.0.0.1:2010", "--rank=2"]
    assert follower["probes"] == {"ready_when": "listens"}
    assert template_shown.glance("t", file, "d").followers == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (GROUP.replace("followers = 3", "followers = 0"), "followers"),
        (GROUP.replace("listens", "lisstens"), "lisstens"),
        (GROUP + "[sleep]\nlevel = 1\n", "not for groups"),
        (GROUP.replace("{leader_host}", "{leaderhost}"), "no parameter is called 'leaderhost'"),
        (GROUP.replace("parameters.model", "parameters.member_rank"), "built in"),
        (GROUP.replace('command = "worker"', 'command = "sh -c"').replace('"--port", ', ""), "interpreter"),
        (HEAD + 'command = "x"\nargs = ["{member_rank}"]\n', "no parameter is called 'member_rank'"),
    ],
)
def test_a_group_that_makes_no_sense_is_refused_in_what_followers_run_as_well(text: str, problem: str) -> None:
    with pytest.raises(TemplateError, match=problem):
        template(text)


def test_adapters_are_the_babysitters_to_judge_and_no_parameters_place(tmp_path: Path) -> None:
    def found(adapters: str) -> Template:
        (tmp_path / "t.toml").write_text(f"{ARGS}[lora]\nadapters = {adapters}\n")
        return read(tmp_path / "t.toml")

    one = found('{ sql = "/sql" }')
    assert one.file is not None, one.error
    assert render(one.file, {**judged(one.file, {"model": "x"})[0], **BUILT_IN})["lora"] == {
        "adapters": {"sql": "/sql"}
    }
    assert "lora.adapters" in found('{ sql = "/{model}" }').error
    assert "a name is 1 to 128 characters" in found('{ "a b" = "/sql" }').error


def test_followers_of_a_group_have_no_adapters() -> None:
    group = template(GROUP + '[lora]\nadapters = { sql = "/sql" }\n')
    assert [bool(group.of_rank(rank).lora) for rank in range(2)] == [True, False]
