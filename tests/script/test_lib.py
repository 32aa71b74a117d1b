import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.script.conftest import Bash


def out(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- configurations and variables


def test_a_configuration_is_looked_for_as_given_then_in_the_project_then_in_config(
    project: Path, bash: Bash, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for place in (project / "config", project, elsewhere):
        (place / "one.toml").write_text("")
        assert out(bash('find_config "$1"', "one.toml", cwd=elsewhere)) == str(place / "one.toml")
    assert out(bash('find_config "$1"', str(project / "one.toml"))) == str(project / "one.toml")
    assert out(bash('find_config "$1"', "config/one.toml", cwd=elsewhere)) == str(project / "config" / "one.toml")
    assert bash('find_config "$1"', "two.toml").returncode == 1
    assert bash('find_config "$1"', "config").returncode == 1


def test_port_that_kubernetes_set_is_told_as_such_W32(bash: Bash) -> None:
    done = bash("require_port MY_REGISTRY_PORT", MY_REGISTRY_PORT="tcp://10.0.0.1:18000")
    assert done.returncode == 78
    assert "for one named 'my-registry'. Set enableServiceLinks: false in the pod" in done.stderr


@pytest.mark.parametrize("value", ["0", "65536", "x", "-1", "1 2", "8000;rm", "99999999999999999999"])
def test_what_is_no_port_is_refused_with_its_name(bash: Bash, value: str) -> None:
    done = bash("require_port SOME_PORT", SOME_PORT=value)
    assert done.returncode == 78
    assert f"SOME_PORT must be a port (1 to 65535), not '{value}'" in done.stderr


def test_a_port_may_have_leading_zeros_and_an_interval_a_fraction(bash: Bash) -> None:
    assert bash("require_port A; require_number B; require_number C", A="08080", B="0.5").returncode == 0
    assert bash("require_number B", B="5s").returncode == 78


@pytest.mark.parametrize(("value", "expected"), [("true", 0), ("FALSE", 1), ("", 0), ("0", 1), ("maybe", 78)])
def test_a_switch_is_true_or_false(bash: Bash, value: str, expected: int) -> None:
    assert bash("is_true SWITCH true", SWITCH=value).returncode == expected


def test_flags_are_made_of_the_variables_that_are_set(bash: Bash) -> None:
    done = bash('flags_from --a A --b B --c C; printf "<%s>" "${FLAGS[@]}"', A="1", B="", C="two words")
    assert out(done) == "<--a><1><--c><two words>"


# --- processes


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_stranger_with_our_pid_is_neither_trusted_nor_killed_B6(
    project: Path, bash: Bash, stranger: subprocess.Popen[bytes]
) -> None:
    (project / "logs/registry.pid").write_text(f"{stranger.pid}\n")
    assert bash("pid_of registry").returncode == 1
    done = bash("stop_processes 1 registry")
    assert "registry: not running" in done.stdout
    assert stranger.poll() is None


def test_the_same_service_of_another_folder_is_a_stranger(project: Path, bash: Bash) -> None:
    environment = {**os.environ, "SVC_LAUNCHED": "/another/folder:registry"}
    with subprocess.Popen(
        [sys.executable, "-m", "registry"], cwd=project, env=environment, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            (project / "logs/registry.pid").write_text(str(process.pid))
            assert bash("pid_of registry").returncode == 1
            bash("stop_processes 1 registry")
            assert process.poll() is None
        finally:
            process.kill()  # leaving the block waits for its end


@pytest.mark.parametrize("content", ["", "abc\n", "-1\n", "0\n", "1 2\n", "999999999\n", "1\n"])
def test_a_senseless_pid_file_is_no_process(project: Path, bash: Bash, content: str) -> None:
    (project / "logs/registry.pid").write_text(content)
    assert bash("pid_of registry").returncode == 1
    assert out(bash("known_processes ''")) == ""


def start(bash: Bash, name: str = "registry", *flags: str) -> psutil.Process:
    """Start a fake process as NAME on the port in its name (18000 without one), and wait until it is up."""
    port = name.partition("_")[2] or "18000"
    snippet = f"start {name} {port} http://a.url 'a label' {' '.join(flags)}; pid_of {name} || true; printf '%s\\n' $!"
    done = bash(f'{snippet}; until grep -q ready "$(log_of {name} {port})"; do sleep 0.02; done')
    return psutil.Process(int(out(done).splitlines()[-1]))


def test_a_started_process_is_detached_and_recognised(project: Path, bash: Bash) -> None:
    process = start(bash)
    assert out(bash("pid_of registry")) == str(process.pid)
    assert out(bash("told_of registry")) == "18000 http://a.url a label"
    assert os.getsid(process.pid) == process.pid
    assert Path(f"/proc/{process.pid}/fd/0").readlink() == Path("/dev/null")
    assert process.cwd() == str(project)
    assert (project / "logs/registry_18000.log").read_text() == "ready\n"


def test_the_pid_file_holds_the_pid_and_nothing_else(project: Path, bash: Bash) -> None:
    process = start(bash)
    assert (project / "logs/registry.pid").read_text() == f"{process.pid}\n"


def test_locks_of_the_launch_are_not_inherited(bash: Bash) -> None:
    done = bash('exec 9<"$SVC_LOGS"; start registry 18000 url x; pid_of registry; ls -l "/proc/$!/fd"')
    assert "logs" not in out(done).replace("logs/registry_18000.log", "")


def test_stop_ends_what_is_ours_and_removes_the_pid_file(project: Path, bash: Bash) -> None:
    process = start(bash)
    done = bash("stop_processes 10 registry")
    assert out(done) == f"registry: stopped (pid {process.pid})"
    process.wait(5)
    assert not (project / "logs/registry.pid").exists()


def test_stop_kills_what_ignores_sigterm_and_says_so(bash: Bash) -> None:
    process = start(bash, "registry", "--stubborn")
    done = bash("stop_processes 1 registry")
    assert done.returncode == 1
    assert f"registry: pid {process.pid} did not end within 1 s; killing it" in done.stderr
    process.wait(5)


def test_several_are_stopped_at_once(bash: Bash) -> None:
    names = [f"babysitter_{port}" for port in (8001, 8011, 8021)]
    for name in names:
        start(bash, name, "--stubborn")
    assert out(bash("known_processes babysitter_")).split() == names
    began = time.monotonic()
    bash(f"stop_processes 1 {' '.join(names)}")
    assert time.monotonic() - began < 3
    assert out(bash("known_processes babysitter_")) == ""


def test_a_process_that_ends_while_starting_gives_its_code_and_its_last_lines(project: Path, bash: Bash) -> None:
    (project / "logs/registry_18000.log").write_text("an old line\n")
    done = bash("start registry 18000 url x --fail; await registry 18000 10 url http://127.0.0.1:1/health")
    assert done.returncode == 78
    assert "no such luck" in done.stderr
    assert "an old line" not in done.stderr
    assert "registry ended while it was starting (exit code 78)" in done.stderr
    assert not (project / "logs/registry.pid").exists()


def test_waiting_ends_with_the_reason_when_the_time_is_up(bash: Bash) -> None:
    done = bash(
        'start registry 18000 url x; await registry 18000 0.3 url http://127.0.0.1:1/health || echo "status $?"'
    )
    assert "status 1" in done.stdout
    assert "registry: not ready after 0 s: it does not listen yet" in done.stderr


def test_a_large_log_is_put_aside_before_a_start(project: Path, bash: Bash) -> None:
    log = project / "logs/registry_18000.log"
    log.write_text("old" * 100)
    done = bash("SVC_LOG_LIMIT_BYTES=100; start registry 18000 url x; pid_of registry")
    assert done.returncode == 0
    assert (project / "logs/registry_18000.log.1").read_text() == "old" * 100


def test_a_failed_run_stops_what_it_started_and_nothing_else(bash: Bash) -> None:
    earlier = start(bash, "babysitter_8001")
    done = bash(
        "trap 'undo $?' EXIT; start_once babysitter_8001 8001 url x; start_once registry 18000 url x; sleep 0.5; fail 'no' 3"
    )
    assert done.returncode == 3
    assert "babysitter_8001: runs already on port 8001" in done.stdout
    assert "registry: stopped" in done.stderr
    assert earlier.is_running()


def test_starting_again_on_another_port_is_refused(bash: Bash) -> None:
    start(bash)
    done = bash("start_once registry 18001 url x")
    assert done.returncode == 1
    assert "already runs on port 18000" in done.stderr


def test_stop_babysitter_takes_a_port_or_a_name(project: Path, bash: Bash) -> None:
    def stop(*args: str) -> subprocess.CompletedProcess[str]:
        return bash('exec "$SVC_ROOT/script/stop_babysitter.sh" "$@"', *args)

    processes = [start(bash, f"babysitter_{port}") for port in (8001, 8011)]
    assert "no babysitter with the port or name 'nobody'" in stop("nobody").stderr
    assert out(stop("8011")) == f"babysitter_8011: stopped (pid {processes[1].pid})"
    assert out(stop("a label")) == f"babysitter_8001: stopped (pid {processes[0].pid})"
    assert out(stop()) == "babysitters: none runs"
    assert list((project / "logs").glob("*.pid")) == []


def test_what_is_started_imports_the_projects_modules_whatever_pythonpath_says_W30(bash: Bash, tmp_path: Path) -> None:
    namesake = tmp_path / "namesakes" / "registry"
    namesake.mkdir(parents=True)
    (namesake / "__init__.py").write_text("raise SystemExit('a namesake was imported')")
    done = bash(
        'start registry 1 http://localhost:1 registry; pid=$(pid_of registry); environment_of "$pid" PYTHONPATH\n'
        'environment_of "$pid" SUITE_GIVEN_PYTHONPATH; tr "\\0" " " <"/proc/$pid/cmdline"',
        PYTHONPATH=str(namesake.parent),
    )
    root, given, words = done.stdout.splitlines()
    assert (root, given) == (str(tmp_path / "a project"), str(namesake.parent))
    assert " -P -m registry" in words


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
