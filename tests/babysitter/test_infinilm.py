"""InfiniLM's servers: the command word for word, and where its script, xtask and checkout are looked for."""

from pathlib import Path

import pytest

from babysitter import infinilm_places
from babysitter.attempt import ServerCommand
from babysitter.launch import make_command, make_plan
from babysitter.settings import BabysitterSettings, parse
from common.exits import ConfigurationError

SYSTEM = "/usr/bin:/bin"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own in an empty folder, which is also the current one."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.setattr(infinilm_places, "PROJECT", project)
    monkeypatch.chdir(project)
    return project


def script_in(folder: Path) -> Path:
    script = folder / "InfiniLM/scripts/launch_server.py"
    script.parent.mkdir(parents=True)
    script.write_text("")
    return script


def program(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


def settings(backend: dict[str, object]) -> BabysitterSettings:
    return BabysitterSettings.model_validate({"port": 8100, "backend": backend})


def command(chosen: BabysitterSettings, **environ: str) -> ServerCommand:
    return make_command(chosen, make_plan(chosen), {"PATH": SYSTEM, **environ})


def test_the_launch_script_is_always_told_its_five_flags_W34(here: Path) -> None:
    script = script_in(here)
    plan = make_plan(parse("-p 8100 --service-type InfiniLM --path /m".split(), {}))
    told = "--port 8100 --host localhost --model-path /m --dev nvidia --ndev 1 --max-batch 3 --request-timeout 300"
    assert list(plan.argv) == ["python3", str(script), *told.split()]
    assert plan.work_dir == str(here / "InfiniLM")


def test_flags_that_are_given_follow_in_the_ancestors_order_W34(here: Path) -> None:
    script = script_in(here)
    given = (
        "-p 8100 --host 127.0.0.1 --service-type InfiniLM --path /m --model-name q --max-concurrency 5 --awq "
        "--max-tokens 512 --request-timeout 30 --max-batch 8 --ndev 4 --dev metax"
    )
    told = (
        "--port 8100 --host 127.0.0.1 --model-path /m --dev metax --ndev 4 --max-batch 8 --request-timeout 30 "
        "--max-tokens 512 --awq --max-concurrency 5 --model-name q"
    )
    assert list(make_plan(parse(given.split(), {})).argv) == ["python3", str(script), *told.split()]


def test_arguments_of_a_file_replace_the_defaults_and_are_not_told_twice_W34(here: Path) -> None:
    script_in(here)
    chosen = settings({"type": "infinilm", "model_path": "/m", "args": ["--dev=metax", "--ndev", "4"]})
    argv = make_plan(chosen).argv
    assert argv[8:] == ("--max-batch", "3", "--request-timeout", "300", "--dev=metax", "--ndev", "4")


@pytest.mark.parametrize("place", [".", ".."], ids=["in the project", "beside it"])
def test_the_script_is_found_in_a_checkout_and_runs_above_its_folder_W34(here: Path, place: str) -> None:
    script = script_in((here / place).resolve())
    made = command(settings({"type": "infinilm", "model_path": "/m"}))
    assert made.argv[1] == str(script)
    assert made.cwd == script.parent.parent


def test_a_script_that_is_named_wins_and_one_in_work_dir_is_found_W34(here: Path) -> None:
    script_in(here)
    named = here / "own" / "scripts" / "serve.py"
    named.parent.mkdir(parents=True)
    named.write_text("")
    found = make_plan(settings({"type": "infinilm", "model_path": "/m", "launch_script": "own/scripts/serve.py"}))
    assert (found.argv[1], found.work_dir) == (str(named), str(here / "own"))
    (named.parent / "launch_server.py").write_text("")
    for work_dir in (named.parent, named.parent.parent):
        found = make_plan(settings({"type": "infinilm", "model_path": "/m", "work_dir": str(work_dir)}))
        assert (found.argv[1], found.work_dir) == (str(named.parent / "launch_server.py"), str(work_dir))


def test_a_script_that_is_nowhere_is_an_error_that_names_the_places_W34(here: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_plan(settings({"type": "infinilm", "model_path": "/m"}))
    for base in ("/workspace", here.parent, here):
        assert f"{base}/InfiniLM/scripts/launch_server.py" in str(caught.value)
    assert "LAUNCH_SCRIPT" in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"launch script is not at .*/project/gone\.py$"):
        make_plan(settings({"type": "infinilm", "model_path": "/m", "launch_script": "gone.py"}))


def test_xtask_is_found_among_cargos_programs_W34(here: Path) -> None:
    xtask = program(here / "home/.cargo/bin/xtask")
    (here / "c.toml").write_text("")
    made = command(settings({"type": "infinilm-rust", "config_file": "c.toml"}), HOME=str(here / "home"))
    assert made.argv == (str(xtask), "service", str(here / "c.toml"), "-p", "8100")
    assert made.env["PATH"] == f"{SYSTEM}:{here}/home/.cargo/bin"


@pytest.mark.parametrize("place", [".", ".."], ids=["in the project", "beside it"])
def test_without_xtask_cargo_runs_it_in_the_checkout_W34(here: Path, place: str) -> None:
    cargo = program(here / "home/.cargo/bin/cargo")
    checkout = (here / place / "InfiniLM-Rust").resolve()
    checkout.mkdir()
    (checkout / "Cargo.toml").write_text("")
    made = command(settings({"type": "infinilm-rust", "config_file": "/c.toml"}), HOME=str(here / "home"))
    assert made.argv == (str(cargo), "xtask", "service", "/c.toml", "-p", "8100")
    assert made.cwd == checkout


def test_neither_xtask_nor_checkout_is_an_error_that_names_the_places_W34(here: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        command(settings({"type": "infinilm-rust", "config_file": "/c.toml"}), HOME="/nowhere")
    for words in ("'xtask' does not exist on PATH or in ~/.cargo/bin", f"{here}/InfiniLM-Rust", "install one"):
        assert words in str(caught.value)
