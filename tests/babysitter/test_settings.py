"""TOML files, both ancestors' flags, and every way to get them wrong."""

from pathlib import Path

import pytest

from babysitter.assemble import make_policy
from babysitter.backend_settings import CommandBackend, InfinilmBackend, InfinilmRustBackend, MockBackend, VllmBackend
from babysitter.settings import BabysitterSettings, parse
from common.settings import SettingsError

GUIDE = """
name = "babysitter-service-1"
port = 8000
registry_url = "http://localhost:18000"

[babysitter]
max_restarts = 10
restart_delay = 2
heartbeat_interval = 10

[metadata]
cache_type = "paged"

[backend]
type = "command"
command = "python"
args = ["/path/to/service.py", "--port", "8000"]
work_dir = "/path/to/workdir"
env = { "CUDA_VISIBLE_DEVICES" = "0" }
"""


def write(path: Path, text: str) -> str:
    file = path / "b.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("flag", ["--config-file", "--config"])
def test_file_of_the_guide_is_understood(tmp_path: Path, flag: str) -> None:
    settings = parse([flag, write(tmp_path, GUIDE)], {})
    assert (settings.name, settings.host, settings.port) == ("babysitter-service-1", "localhost", 8000)
    assert settings.registry_url == ("http://localhost:18000",)
    assert (settings.babysitter.max_restarts, settings.babysitter.restart_delay_s) == (10, 2)
    assert settings.metadata == {"cache_type": "paged"}
    assert isinstance(settings.backend, CommandBackend)
    assert settings.backend.args == ("/path/to/service.py", "--port", "8000")
    assert settings.backend.env == {"CUDA_VISIBLE_DEVICES": "0"}


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ('type = "vllm"\nmodel = "m"', VllmBackend),
        ('type = "vLLM"\nmodel = "m"', VllmBackend),
        ('type = "mock"\nmodels = ["m"]', MockBackend),
        ('type = "InfiniLM"\nmodel_path = "/m"', InfinilmBackend),
        ('type = "InfiniLM-Rust"\nconfig_file = "/c"', InfinilmRustBackend),
    ],
)
def test_every_backend_type_is_understood(tmp_path: Path, table: str, kind: type) -> None:
    settings = parse(["--config", write(tmp_path, f'name = "a"\nport = 8001\n[backend]\n{table}')], {})
    assert isinstance(settings.backend, kind)


def flags(text: str) -> BabysitterSettings:
    return parse(text.split(), {})


def test_flags_of_the_rust_ancestor_stand_alone() -> None:
    argv = ["--name", "s", "--host", "127.0.0.1", "--port", "8000", "--registry-url", "http://r:1"]
    argv += ["--command", "python3 -m x", "--args", "--port 8000 --verbose", "--work-dir", "/w", "--env", "A=b=c"]
    settings = parse(argv, {})
    assert isinstance(settings.backend, CommandBackend)
    assert settings.backend.command == "python3 -m x"
    assert settings.backend.args == ("--port", "8000", "--verbose")
    assert settings.backend.work_dir == "/w"
    assert settings.backend.env == {"A": "b=c"}


def test_several_args_are_taken_as_they_are() -> None:
    settings = parse(["-n", "s", "-p", "1", "--command", "x", "--args", "a b", "c"], {})
    assert isinstance(settings.backend, CommandBackend)
    assert settings.backend.args == ("a b", "c")


def test_flags_of_the_python_ancestor_stand_alone() -> None:
    settings = flags(
        "-n s -p 8000 --path /models/9g --service-type InfiniLM --dev metax --ndev 1 --max-batch 3 --max-tokens 512 "
        "--awq --request-timeout 30 --max-concurrency 10 --registry http://r:1 --router http://r:2 --model-name q"
    )
    assert isinstance(settings.backend, InfinilmBackend)
    assert settings.backend.model_path == "/models/9g"
    assert settings.backend.args == tuple(
        "--dev metax --ndev 1 --max-batch 3 --request-timeout 30 --max-tokens 512 --awq --max-concurrency 10 "
        "--model-name q".split()
    )
    assert settings.router_url == "http://r:2"


def test_service_type_infinilm_is_the_default_of_a_path() -> None:
    assert isinstance(flags("-n s -p 8000 --path /m").backend, InfinilmBackend)


def test_rust_flags_give_its_configuration_file() -> None:
    backend = flags("-n s -p 8000 --service-type InfiniLM-Rust --path /c.toml --request-timeout 30").backend
    assert isinstance(backend, InfinilmRustBackend)
    assert backend.config_file == "/c.toml"


@pytest.mark.parametrize(
    ("argv", "backend"),
    [
        ("--service-type vLLM --path org/m", VllmBackend(type="vllm", model="org/m")),
        (
            "--service-type vllm --path org/m --model-name m --args=--dtype=auto",
            VllmBackend(type="vllm", model="org/m", args=("--dtype=auto", "--served-model-name", "m")),
        ),
        ("--service-type mock", MockBackend(type="mock", models=("mock-model",))),
        ("--service-type mock --model-name a,b", MockBackend(type="mock", models=("a", "b"))),
        ("--service-type command --command ./serve", CommandBackend(type="command", command="./serve")),
        ("--service-type Command --path /opt/serve", CommandBackend(type="command", command="/opt/serve")),
        ("--service-type infinilm --path /m", InfinilmBackend(type="infinilm", model_path="/m")),
        ("--service-type infinilm-rust --path /c", InfinilmRustBackend(type="infinilm-rust", config_file="/c")),
    ],
)
def test_service_type_takes_every_type_of_both_ancestors_W36(argv: str, backend: object) -> None:
    assert flags(f"-p 8000 {argv}").backend == backend


@pytest.mark.parametrize(
    ("argv", "table", "name"),
    [
        ("-p 8100 --service-type InfiniLM --path /m", "", "infinilm-infinilm-8100"),
        ("-p 8200 --service-type InfiniLM-Rust --path /c", "", "infinilm-infinilm-rust-8200"),
        ("", 'port = 8001\n[backend]\ntype = "vLLM"\nmodel = "m"', "infinilm-vllm-8001"),
        ("-p 9001", 'name = ""\nport = 8001\n[backend]\ntype = "mock"\nmodels = ["m"]', "infinilm-mock-9001"),
        ("-n own", 'port = 8001\n[backend]\ntype = "mock"\nmodels = ["m"]', "own"),
    ],
)
def test_a_babysitter_without_a_name_gets_one_W36(tmp_path: Path, argv: str, table: str, name: str) -> None:
    file = ["--config-file", write(tmp_path, table)] if table else []
    assert parse([*file, *argv.split()], {}).name == name


def test_flags_override_the_file_and_the_environment(tmp_path: Path) -> None:
    argv = ["--config", write(tmp_path, GUIDE), "--port", "9000", "--restart-delay", "7", "--args", "other.py"]
    settings = parse(argv, {"SVC_BABYSITTER_PORT": "9100", "SVC_BABYSITTER_HOST": "127.0.0.2"})
    assert (settings.port, settings.host, settings.babysitter.restart_delay_s) == (9000, "127.0.0.2", 7)
    assert isinstance(settings.backend, CommandBackend)
    assert settings.backend.args == ("other.py",)
    assert settings.backend.command == "python"


def test_flags_of_another_backend_type_replace_the_files_backend(tmp_path: Path) -> None:
    settings = parse(["--config-file", "config/babysitter1.toml", "--command", "python3 srv.py"], {})
    assert settings.backend == CommandBackend(type="command", command="python3 srv.py")
    assert settings.name == parse(["--config-file", "config/babysitter1.toml"], {}).name
    argv = ["--config", write(tmp_path, GUIDE), "--service-type", "InfiniLM-Rust", "--path", "/c.toml"]
    assert parse(argv, {}).backend == InfinilmRustBackend(type="infinilm-rust", config_file="/c.toml")


def test_flags_of_the_same_backend_type_keep_the_files_other_settings(tmp_path: Path) -> None:
    file = write(tmp_path, GUIDE.replace('"command"', '"Command"'))
    backend = parse(["--config", file, "--command", "other"], {}).backend
    assert isinstance(backend, CommandBackend)
    assert (backend.command, backend.work_dir) == ("other", "/path/to/workdir")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name = ", "not valid TOML"),
        (GUIDE.replace("port = 8000", "prot = 8000"), "unknown key 'prot' (did you mean 'port'?)"),
        (GUIDE.replace("max_restarts", "max_restart"), "unknown key 'babysitter.max_restart' (did you mean"),
        (GUIDE.replace("work_dir", "workdir"), "unknown key 'backend.workdir'"),
        (GUIDE.replace("port = 8000\n", ""), "'port' is missing"),
        (GUIDE.replace("port = 8000\n", "port = 65535\n"), "'port': "),
        (GUIDE.replace("port = 8000\n", 'port = "x"\n'), "'port': "),
        (GUIDE.replace('"babysitter-service-1"', '"../x"'), "'name': must be"),
        (GUIDE.replace('command = "python"\n', ""), "'backend.command' is missing"),
        (GUIDE.replace('"command"', '"docker"'), "'backend'"),
        ('name = "a"\nport = 1\n', "'backend' is missing"),
        (GUIDE.replace("restart_delay = 2", "restart_delay = -1"), "'babysitter.restart_delay'"),
    ],
)
def test_fault_in_the_file_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, fault: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        parse(["--config", file], {})
    lines = str(caught.value).splitlines()
    assert any(line.startswith(file) and fault in line for line in lines), lines


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        ("-n s -p 1 --command x --service-type InfiniLM", "--service-type and --command contradict"),
        ("-n s -p 1 --service-type train --path x", "--service-type: must be"),
        ("-n s -p 1 --service-type vllm --path x --ndev 4", "--ndev: only for --service-type InfiniLM"),
        ("-n s -p 1 --command x --env NOVALUE", "--env: must be NAME=VALUE (got NOVALUE)"),
        ("-n s -p 1 --command x --ndev 4", "--ndev: only for --service-type InfiniLM"),
        ("-n s -p 1 --service-type InfiniLM-Rust --path c --ndev 4", "--ndev: InfiniLM-Rust takes it from"),
        ("-n s -p abc --command x", "--port: 'port'"),
        ("-n s -p 1", "'backend' is missing"),
        ("--config /nowhere.toml", "/nowhere.toml: cannot be read"),
    ],
)
def test_fault_in_the_flags_names_the_flag(argv: str, fault: str) -> None:
    with pytest.raises(SettingsError) as caught:
        flags(argv)
    text = str(caught.value)
    assert fault in text or fault.replace("--port", "-p") in text


@pytest.mark.parametrize("name", ["babysitter1.toml", "babysitter2.toml"])
def test_shipped_mock_replicas_load(name: str) -> None:
    assert isinstance(parse(["--config", f"config/{name}"], {}).backend, MockBackend)


@pytest.mark.parametrize("path", sorted(Path("config/examples").glob("*.toml")), ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    agents = ["--replica-dir", "/root/abc123def456", "--port", "8200"] if path.stem == "cbclient" else []
    assert parse(["--config", str(path), *agents], {}).name


@pytest.mark.parametrize(
    ("table", "exits"),
    [
        ("", 5),
        ("max_restarts = 10000", 5),
        ("max_restarts = 10", 11),
        ("max_restarts = 2", 5),
    ],
)
def test_max_restarts_that_somebody_chose_are_given_in_full_W43(tmp_path: Path, table: str, exits: int) -> None:
    """The guide's file says 10, and a crash loop was called after the fourth."""
    mock = 'port = 8001\n[backend]\ntype = "mock"\nmodels = ["m"]\n[babysitter]\n'
    policy = make_policy(parse(["--config", write(tmp_path, mock + table)], {}), None)
    assert policy.crash_loop_exits == exits


def test_old_file_with_settings_of_the_last_version_still_loads_and_is_warned_of(tmp_path: Path) -> None:
    old = """port = 8001
backend = {type = "mock", models = ["m"]}
[babysitter]
restart_delay = 2
heartbeat_interval = 7
drain_s = 9
restart_reset_s = 60
crash_loop_exits = 3
crash_loop_window_s = 60
start_slots_dir = "/run/slots"
[cbclient]
script_command = ["{python}", "{script}"]
"""
    settings = parse(["--config", write(tmp_path, old)], {})
    restarts = settings.babysitter
    assert (restarts.restart_delay_s, restarts.heartbeat_interval_s, restarts.drain_timeout_s) == (2, 7, 9)
    assert set(settings.retired()) == {
        "babysitter.restart_reset_s",
        "babysitter.crash_loop_exits",
        "babysitter.crash_loop_window_s",
        "babysitter.start_slots_dir",
        "cbclient.script_command",
    }
    assert all(remedy.startswith("Ignored, leave it out") for remedy in settings.retired().values())


def test_name_of_now_wins_over_the_former_one(tmp_path: Path) -> None:
    both = 'port = 8001\nbackend = {type = "mock", models = ["m"]}\nbabysitter = {drain_s = 9, drain_timeout_s = 8}\n'
    assert parse(["--config", write(tmp_path, both)], {}).babysitter.drain_timeout_s == 8
    assert parse(["--config", write(tmp_path, both), "--drain", "7"], {}).babysitter.drain_timeout_s == 7
