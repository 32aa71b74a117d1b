"""What of the launch scripts is in script/helper.py and script/lib.sh themselves."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ctl.launcher.scripts import Stop
from tests.script.conftest import ROOT


@pytest.fixture(scope="module")
def helper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("helper_alone", ROOT / "script" / "helper.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("port = ", "not valid TOML"),
        ("name = 'x'", "'port' is missing"),
        ("port = 'x'", "'port': input should be a valid integer"),
        ("port = true", "'port': must be a number"),
        ("port = 8001", "'backend' is missing"),
        ("port = 8001\nrooter_url = 'x'\n[backend]\ntype = 'mock'\nmodels = ['m']", "unknown key 'rooter_url'"),
    ],
)
def test_a_faulty_configuration_is_named(helper: ModuleType, tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text)
    with pytest.raises(Stop) as error:
        helper.read(str(file))
    assert error.value.code == 78
    assert str(file) in error.value.lines[0]
    assert expected in "\n".join(error.value.lines)


def test_a_configuration_gives_port_host_and_name(helper: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("port = 8001\nname = 'replica-1'\n[backend]\ntype = 'mock'\nmodels = ['m']\n")
    read = helper.read(str(file))
    assert (read.config, read.port, read.host, read.name) == (str(file), 8001, "localhost", "replica-1")
    file.write_text("port = 8001\n[backend]\ntype = 'mock'\nmodels = ['m']\n")
    assert helper.read(str(file)).name == "infinilm-mock-8001"


def test_variables_that_nobody_reads_are_said_before_a_launch_W58(
    helper: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("SVC_")]:
        monkeypatch.delenv(name)
    for name in ("SVC_ROUTR_PORT", "SVC_AGENT_NOD", "SVC_ROUTER_PORT", "SVC_SETUP", "SVC_VENV"):
        monkeypatch.setenv(name, "8005")
    helper.tell_unread()
    assert capsys.readouterr().err.splitlines() == [
        "warning: nobody reads SVC_AGENT_NOD; did you mean SVC_AGENT_NODE?",
        "warning: nobody reads SVC_ROUTR_PORT; did you mean SVC_ROUTER_PORT?",
    ]


def test_a_script_that_has_nothing_to_stop_makes_no_environment(project: Path) -> None:
    """A fresh clone: stop and status say so, and install nothing."""
    env = {**os.environ, "SVC_VENV": str(project / "nothing")}
    for script, code, said in (
        ("stop_all.sh", 0, "nothing was launched from here\n"),
        ("status.sh", 1, "Nothing was launched from here yet. Start with ./script/launch_all.sh\n"),
    ):
        done = subprocess.run(
            [project / "script" / script], env=env, capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (code, said, "")
    assert not (project / "nothing").exists()


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/usr/bin/setpriv").exists(), reason="root may write everywhere")
def test_a_logs_folder_of_somebody_elses_is_told_with_the_remedy_W60(project: Path) -> None:
    (project / "logs").chmod(0o555)
    snippet = f'. "{project}/script/lib.sh"; prepare'
    python = project / "venv" / "bin" / "python"  # never run: a real one may lie in a home that nobody else enters
    python.parent.mkdir(parents=True)
    python.symlink_to("/bin/true")
    as_nobody = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    for folder in (project, *project.parents):  # pytest's own are private
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    done = subprocess.run(
        [*as_nobody, "bash", "-c", snippet],
        env={"PATH": os.environ["PATH"], "SVC_SETUP": "skip", "SVC_VENV": str(project / "venv")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 78, done.stderr
    assert f"it belongs to user {os.geteuid()}" in done.stderr
    assert '--user "$(id -u):$(id -g)"' in done.stderr


def test_the_variables_of_a_sourced_launch_need_not_be_exported(project: Path) -> None:
    """helper.py is told what the shell has: here it only prints it."""
    (project / "script" / "helper.py").write_text("import sys; print(sys.argv[1:])\n")
    lines = f'ROUTER_PORT=8005; BABYSITTER_CONFIGS=("a file.toml" b.toml); . "{project}/script/launch_all.sh"; echo "on: $?"'
    env = {"PATH": os.environ["PATH"], "SVC_VENV": sys.prefix, "SVC_SETUP": "skip"}
    done = subprocess.run(["bash", "-c", lines], env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.splitlines() == ["['up', 'all', 'ROUTER_PORT=8005', '--', 'a file.toml', 'b.toml']", "on: 0"]
