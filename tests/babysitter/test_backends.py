"""The command of every backend, word for word."""

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from babysitter.assemble import make_sleep
from babysitter.backends.plan import option_value
from babysitter.launch import make_command, make_plan
from babysitter.settings import BabysitterSettings
from babysitter.sleep_rules import EngineCall, SleepRules, says_asleep
from common import own_python
from common.exits import ConfigurationError


def settings(**backend: object) -> BabysitterSettings:
    given = {"name": "s1", "port": 8001, "backend": backend}
    return BabysitterSettings.model_validate(given)


@pytest.mark.parametrize(
    ("backend", "argv"),
    [
        ({"type": "command", "command": "a", "args": ["b", "c d"]}, ["a", "b", "c d"]),
        ({"type": "command", "command": "python3 -m x 'y z'"}, ["python3", "-m", "x", "y z"]),
        (
            {"type": "vllm", "model": "org/m", "args": ["--dtype", "auto"]},
            "python3 -m vllm.entrypoints.openai.api_server --model org/m --port 8001 --host localhost "
            "--dtype auto".split(),
        ),
        (
            {"type": "mock", "models": ["m", "n"]},
            [
                sys.executable,
                *"-P -m babysitter.mock --host localhost --port 8001 --name s1 --model m --model n".split(),
            ],
        ),
        ({"type": "infinilm-rust", "config_file": "/c.toml"}, "xtask service /c.toml -p 8001".split()),
    ],
)
def test_command_of_a_backend_is_the_contracts(backend: dict[str, object], argv: list[str]) -> None:
    assert list(make_plan(settings(**backend)).argv) == argv


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ({"type": "vllm", "model": "org/m"}, ("org/m",)),
        ({"type": "vllm", "model": "org/m", "args": ["--served-model-name", "m"]}, ("m",)),
        ({"type": "vllm", "model": "org/m", "args": ["--served-model-name=m"]}, ("m",)),
        ({"type": "mock", "models": ["m", "n"]}, ("m", "n")),
        ({"type": "command", "command": "a"}, ()),
    ],
)
def test_expected_models_are_those_the_command_asks_for(backend: dict[str, object], expected: tuple[str, ...]) -> None:
    assert make_plan(settings(**backend)).expected_models == expected


@pytest.mark.parametrize(
    ("host", "sleep", "sleeps"),
    [
        ("127.0.0.1", {"level": 1}, True),
        ("localhost", {"level": 2}, True),
        ("10.0.0.5", {"level": 1}, False),
        ("0.0.0.0", {"level": 1}, False),
        ("localhost", {}, False),
    ],
)
def test_vllm_has_its_calls_for_sleeping_on_loopback_only(host: str, sleep: dict[str, object], sleeps: bool) -> None:  # noqa: FBT001 - a row
    given = {"name": "s1", "port": 8001, "host": host, "sleep": sleep, "backend": {"type": "vllm", "model": "m"}}
    made = BabysitterSettings.model_validate(given)
    plan, rules = make_plan(made), make_sleep(made)
    assert ("--enable-sleep-mode" in plan.argv, plan.env.get("VLLM_SERVER_DEV_MODE")) == (
        sleeps,
        "1" if sleeps else None,
    )
    assert (rules is not None) is sleeps
    if rules is not None:
        assert str(rules.state) == "GET /is_sleeping"
        assert str(rules.sleep[0]) == f"POST /sleep?level={sleep['level']}"


@pytest.mark.parametrize(
    ("sleep", "words"),
    [
        ({"sleep": "POST /sleep"}, "need each other"),
        ({"sleep": "POST /sleep", "wake": "/wake"}, "'/wake' is no call"),
        ({"sleep": "POST /sleep", "wake": "POST /wake {1}"}, "is no JSON"),
        ({"state": "GET /is_sleeping"}, "need each other"),
        ({"level": 1, "sleep": "POST /sleep", "wake": "POST /wake"}, "vLLM's own"),
        ({"level": 1}, "is for vllm"),
        ({"level": 3}, "1 or 2"),
    ],
)
def test_sleep_that_makes_no_sense_is_refused(sleep: dict[str, object], words: str) -> None:
    given = {"name": "s1", "port": 8001, "sleep": sleep, "backend": {"type": "mock", "models": ["m"]}}
    with pytest.raises(ValidationError, match=words):
        BabysitterSettings.model_validate(given)


def test_calls_for_sleeping_are_a_word_or_a_list_with_bodies() -> None:
    sleep = {"sleep": "POST /sleep", "wake": ['POST /rpc {"method": "x"}', "PUT /on?a=b"]}
    given = {"name": "s1", "port": 8001, "sleep": sleep, "backend": {"type": "mock", "models": ["m"]}}
    rules = make_sleep(BabysitterSettings.model_validate(given))
    calls = EngineCall("POST", "/rpc", b'{"method": "x"}'), EngineCall("PUT", "/on?a=b")
    assert rules == SleepRules((EngineCall("POST", "/sleep"),), calls)


@pytest.mark.parametrize(
    ("raw", "said"),
    [(b'{"is_sleeping": true}', True), (b"false", False), (b"{}", None), (b'"yes"', None), (b"<html>", None)],
)
def test_answer_to_state_says_whether_it_sleeps(raw: bytes, said: bool | None) -> None:  # noqa: FBT001 - a row
    assert says_asleep(raw) is said


@pytest.mark.parametrize(
    ("args", "value"),
    [([], None), (["--m"], None), (["--m", "a"], "a"), (["--m=a"], "a"), (["--m", "a", "--m=b"], "b")],
)
def test_option_value_finds_the_last_one(args: list[str], value: str | None) -> None:
    assert option_value(args, "--m") == value


def test_mock_can_be_found_from_any_directory() -> None:
    assert make_plan(settings(type="mock", models=["m"])).env["PYTHONPATH"] == own_python.SEARCH


def command_of(backend: dict[str, object], environ: dict[str, str]) -> object:
    chosen = settings(**backend)
    return make_command(chosen, make_plan(chosen), environ)


def test_missing_command_is_named() -> None:
    with pytest.raises(ConfigurationError, match="command 'no-such-program' does not exist on PATH"):
        command_of({"type": "command", "command": "no-such-program -x"}, {"PATH": "/usr/bin:/bin"})


def test_missing_work_dir_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"work_dir .*/nowhere is not a directory"):
        command_of({"type": "command", "command": "true", "work_dir": str(tmp_path / "nowhere")}, {})


def test_command_relative_to_its_work_dir_is_found(tmp_path: Path) -> None:
    program = tmp_path / "serve.sh"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    backend: dict[str, object] = {"type": "command", "command": "./serve.sh", "work_dir": str(tmp_path)}
    chosen = settings(**backend)
    made = make_command(chosen, make_plan(chosen), {"PATH": "/bin"})
    assert Path(made.argv[0]).samefile(program)


def test_environment_of_the_server_has_no_setting_of_ours_B18() -> None:
    environ = {"PATH": "/bin:/usr/bin", "SVC_BABYSITTER_TOKEN_FILE": "x", "CUDA_VISIBLE_DEVICES": "0"}
    chosen = settings(type="command", command="true", env={"CUDA_VISIBLE_DEVICES": "1", "A": "b"})
    made = make_command(chosen, make_plan(chosen), environ)
    assert dict(made.env) == {"PATH": "/bin:/usr/bin", "CUDA_VISIBLE_DEVICES": "1", "A": "b"}


def test_output_goes_to_files_named_after_the_service() -> None:
    chosen = settings(type="command", command="true")
    made = make_command(chosen, make_plan(chosen), {"PATH": "/bin:/usr/bin"})
    assert made.stdout.name == "server_s1_stdout.log"
    assert made.stderr == Path.cwd() / "logs" / "server_s1_stderr.log"


def test_vllm_gets_its_key_by_the_environment_and_never_by_argv_W3(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-secret\n")
    key.chmod(0o600)
    backend = {"type": "vllm", "model": "m"}
    chosen = BabysitterSettings.model_validate(
        {"name": "s", "port": 9000, "backend": backend, "api_key_file": str(key)}
    )
    made = make_command(chosen, make_plan(chosen), {"PATH": "/bin:/usr/bin"})
    assert made.env["VLLM_API_KEY"] == "sk-secret"
    assert "sk-secret" not in " ".join(made.argv)
