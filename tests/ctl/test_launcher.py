"""Processes that are started, recognised, awaited and ended, with modules that only sleep."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from common import own_python
from ctl.api import Api, Place
from ctl.codes import Code
from ctl.launcher import launch, processes, ready
from ctl.launcher.launch import CannotStart, Launch
from ctl.launcher.plan import Part
from ctl.launcher.ready import Readiness
from ctl.launcher.scripts import Script, Stop, down, tell_ended
from ctl.launcher.state_dir import Launched, StateDir
from ctl.launcher.variables import Variables
from ctl.output import Output
from ctl.problem import Problem
from ctl.progress import ProgressBoard
from tests.ports import free_port

SLEEPER = """
import signal, sys, time
if "--stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "--fail" in sys.argv:
    print("no such luck")
    sys.exit(78)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateDir]:
    """A folder whose `registry` and `babysitter` only sleep; whatever a test starts ends with it."""
    root = tmp_path / "a project"
    for module in ("registry", "babysitter"):
        (root / module).mkdir(parents=True)
        (root / module / "__init__.py").touch()
        (root / module / "__main__.py").write_text(SLEEPER)
    monkeypatch.setattr(own_python, "SEARCH", str(root))
    monkeypatch.setattr(processes, "_children", {})
    state = StateDir(root)
    state.prepare()
    yield state
    for child in processes._children.values():
        child.process.kill()
        child.process.wait()


def part(name: str = "registry", *flags: str, port: int = 1) -> Part:
    kind, _, number = name.partition("_")
    ports = (int(number), int(number) + 1) if number else (port,)
    return Part(name, kind, flags, f"http://127.0.0.1:{ports[-1]}", ports, f"a label {number} at http://x")


def start(state: StateDir, name: str = "registry", *flags: str) -> Launched:
    """Start a sleeper, and wait until it is up."""
    launched = processes.spawn(part(name, *flags), state, os.environ, state.root)
    deadline = time.monotonic() + 20
    while "ready" not in Path(launched.log).read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    return launched


def as_a_stranger_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are recognised by what /proc tells, not as children."""
    monkeypatch.setattr(processes, "find", lambda one: psutil.Process(one.pid) if one.is_ours() else None)


class FakeApi(Api):
    """Answers by URL and path; a Problem is raised."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers

    async def call(self, place: Place, method: str, path: str, **_: Any) -> dict[str, Any]:  # noqa: ARG002 - the real one's
        answer = self.answers.get(place.url + path, Problem("no answer", code=Code.UNREACHABLE))
        if isinstance(answer, Problem):
            raise answer
        return dict(answer)

    async def text(self, place: Place, path: str) -> str:
        return json.dumps(await self.call(place, "GET", path))


def quiet() -> ProgressBoard:
    return ProgressBoard(Output(sys.stdout, sys.stdout, as_json=True))


def run_of(state: StateDir, **more: Any) -> Launch:
    return Launch(state, os.environ, 1.0, state.root, **more)


# --- recognised


@pytest.fixture
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_stranger_with_our_pid_is_neither_trusted_nor_killed_B6(
    state: StateDir, stranger: "subprocess.Popen[bytes]"
) -> None:
    (state.logs / "registry.pid").write_text(f"{stranger.pid}\n")
    (launched,) = state.all()
    assert not launched.is_ours()
    told: list[str] = []
    assert processes.end([launched], state, 1, lambda _one, how: told.append(how))
    assert told == ["was not running"]
    assert stranger.poll() is None


def test_the_same_service_of_another_folder_is_a_stranger(state: StateDir) -> None:
    environment = {**os.environ, "SVC_LAUNCHED": "/another/folder:registry"}
    with subprocess.Popen(
        [sys.executable, "-m", "registry"], cwd=state.root, env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (state.logs / "registry.pid").write_text(str(process.pid))
        (launched,) = state.all()
        assert not launched.is_ours()
        assert not processes.send(launched, 15)  # type: ignore[arg-type] # SIGTERM
        assert process.poll() is None
        process.kill()


@pytest.mark.parametrize("content", ["", "abc\n", "-1\n", "0\n", "1 2\n", "999999999\n", "1\n"])
def test_a_senseless_pid_file_is_no_process(state: StateDir, content: str) -> None:
    (state.logs / "registry.pid").write_text(content)
    (launched,) = state.all()
    assert (launched.is_ours(), launched.url, launched.own_port) == (False, "", 0)


def test_a_pid_file_of_something_else_is_left_alone(state: StateDir) -> None:
    (state.logs / "etcd.pid").write_text("1\n")
    assert state.all() == []


def test_a_started_process_is_detached_and_recognised(state: StateDir) -> None:
    launched = start(state)
    assert state.get("registry") == launched
    assert (launched.port, launched.url, launched.serves) == (1, "http://127.0.0.1:1", "a label  at http://x")
    assert os.getsid(launched.pid) == launched.pid
    assert Path(f"/proc/{launched.pid}/fd/0").readlink() == Path("/dev/null")
    assert psutil.Process(launched.pid).cwd() == str(state.root)
    assert (state.logs / "registry_1.log").read_text() == "ready\n"


def test_what_the_scripts_launched_before_svcctl_knew_them_is_ours(state: StateDir) -> None:
    """The launch scripts of the last version: the same pid file and variables, and a label that is the name alone."""
    told = {"SVC_LAUNCHED": f"{state.root}:babysitter_8100", "SVC_LAUNCHED_AS": "8100 http://127.0.0.1:8101 a name"}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "babysitter"],
        env={**os.environ, **told, "PYTHONPATH": str(state.root)},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (state.logs / "babysitter_8100.pid").write_text(f"{process.pid}\n")
        (launched,) = state.all()
        assert launched.is_ours()
        assert (launched.port, launched.own_port, launched.serves) == (8100, 8101, "a name")
        assert launched.is_called("a name")
        process.kill()


def test_what_an_older_svcctl_started_is_ours_until_it_is_ended(state: StateDir) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "registry"],
        env={**os.environ, "SVCCTL_MARK": "uuid", "PYTHONPATH": str(state.root)},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        record = {
            "name": "registry", "kind": "registry", "module": "registry", "pid": process.pid, "mark": "uuid",
            "url": "http://127.0.0.1:18000", "port": 18000, "serves": "http://127.0.0.1:18000",
            "log": "/l", "started_at": "2026-01-01T00:00:00Z", "config": None,
        }  # fmt: skip
        (state.root / "run").mkdir()
        file = state.root / "run" / "registry.json"
        file.write_text(json.dumps(record))
        launched = state.get("registry")
        assert launched is not None
        assert (launched.is_ours(), launched.own_port) == (True, 18000)
        file.with_name("bad.json").write_text('{"name": "x"}')
        assert state.all() == [launched]
        process.kill()
        process.wait()
        processes.end([launched], state, 5, tell_ended)
        assert not file.exists()


def test_the_pid_file_holds_the_pid_and_nothing_else(state: StateDir) -> None:
    launched = start(state)
    assert (state.logs / "registry.pid").read_text() == f"{launched.pid}\n"


async def test_locks_of_the_launch_are_not_inherited_and_one_launch_waits_for_another(state: StateDir) -> None:
    async with state.locked():
        launched = start(state)
        open_files = [path.readlink().name for path in Path(f"/proc/{launched.pid}/fd").iterdir()]
        assert ".lock" not in open_files
        with pytest.raises(Problem, match=rf"another launch works in .*\(pid {os.getpid()}\)"):
            async with state.locked(0.2):
                pass
    async with state.locked():
        pass


def test_what_is_started_imports_our_modules_whatever_pythonpath_says_W30(state: StateDir, tmp_path: Path) -> None:
    namesake = tmp_path / "namesakes" / "registry"
    namesake.mkdir(parents=True)
    (namesake / "__init__.py").write_text("raise SystemExit('a namesake was imported')")
    environ = {**os.environ, "PYTHONPATH": str(namesake.parent)}
    environ.pop("SUITE_GIVEN_PYTHONPATH", None)
    launched = processes.spawn(part(), state, environ, state.root)
    while "ready" not in Path(launched.log).read_text():
        assert processes.find(launched) is not None
        time.sleep(0.02)
    environment = psutil.Process(launched.pid).environ()
    assert (environment["PYTHONPATH"], environment["SUITE_GIVEN_PYTHONPATH"]) == (str(state.root), str(namesake.parent))
    assert " -P -m registry" in " ".join(psutil.Process(launched.pid).cmdline())


def test_a_large_log_is_put_aside_before_a_start(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOG_LIMIT_BYTES", 100)
    (state.logs / "registry_1.log").write_text("old" * 100)
    start(state)
    assert (state.logs / "registry_1.log.1").read_text() == "old" * 100


# --- ended


def test_stop_ends_what_is_ours_and_removes_the_pid_file(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    launched = start(state)
    assert processes.end(state.all(), state, 10, tell_ended)
    assert capsys.readouterr().out == f"registry: stopped (pid {launched.pid})\n"
    assert state.all() == []
    assert not psutil.pid_exists(launched.pid)


def test_stop_kills_what_ignores_sigterm_and_says_so(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    launched = start(state, "registry", "--stubborn")
    assert not processes.end(state.all(), state, 1, tell_ended)
    assert f"registry: killed, because it did not end within 1 s (pid {launched.pid})" in capsys.readouterr().err
    assert not psutil.pid_exists(launched.pid)


def test_several_are_stopped_at_once(state: StateDir) -> None:
    names = [f"babysitter_{port}" for port in (8001, 8011, 8021)]
    for name in names:
        start(state, name, "--stubborn")
    assert [launched.name for launched in state.all()] == names
    began = time.monotonic()
    processes.end(state.all(), state, 1, tell_ended)
    assert time.monotonic() - began < 3
    assert state.all() == []


async def test_stop_babysitter_takes_a_port_or_a_name(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(state.root, {}, Variables({}), lambda _file: pytest.fail("nothing is read"))
    pids = [start(state, f"babysitter_{port}").pid for port in (8001, 8011)]
    with pytest.raises(Stop) as error:
        await down.down(script, "babysitter", "nobody")
    assert error.value.lines == (f"error: no babysitter with the port or name 'nobody' was launched from {state.root}",)
    assert await down.down(script, "babysitter", "8011") == 0
    assert capsys.readouterr().out == f"babysitter_8011: stopped (pid {pids[1]})\n"
    assert await down.down(script, "babysitter", "a label 8001") == 0
    assert capsys.readouterr().out == f"babysitter_8001: stopped (pid {pids[0]})\n"
    assert await down.down(script, "babysitter") == 0
    assert capsys.readouterr().out == "babysitters: none runs\n"


# --- awaited


async def test_a_process_that_ends_while_starting_gives_its_code_and_its_last_lines(state: StateDir) -> None:
    (state.logs / "registry_1.log").write_text("an old line\n")
    with pytest.raises(CannotStart) as error:
        await launch.bring_up(FakeApi({}), run_of(state), [part("registry", "--fail")], quiet())
    assert error.value.ended_with == 78
    assert error.value.tail == ["no such luck"]
    assert error.value.message == "registry: it ended with exit code 78; it said: no such luck"


async def test_waiting_ends_with_the_reason_when_the_time_is_up(state: StateDir) -> None:
    impatient = Part("registry", "registry", (), "http://127.0.0.1:1", (1,), "", patience_s=0.3)
    with pytest.raises(CannotStart, match=r"registry: it did not answer in time \(starting\)"):
        await launch.bring_up(FakeApi({}), run_of(state), [impatient], quiet())


async def test_a_failed_run_stops_what_it_started_and_nothing_else(state: StateDir) -> None:
    earlier = start(state, "babysitter_8001")
    run = run_of(state)
    await launch.start(FakeApi({}), run, part("babysitter_8001"), quiet())
    await launch.start(FakeApi({}), run, part(), quiet())
    told: list[str] = []
    launch.undo(run, lambda one, how: told.append(f"{one.name}: {how}"))
    assert told == ["registry: stopped"]
    assert processes.find(earlier) is not None


async def test_starting_again_on_another_port_is_refused(state: StateDir) -> None:
    start(state)
    with pytest.raises(CannotStart, match=r"registry: already runs at http://127\.0\.0\.1:1 \(pid "):
        await launch.start(FakeApi({}), run_of(state), part(port=2), quiet())


async def test_for_the_scripts_a_babysitter_that_cannot_start_takes_nothing_down_W40(state: StateDir) -> None:
    parts = [part("babysitter_8001", "--fail"), part("babysitter_8011", "--fail")]
    run = run_of(state, for_scripts=True)
    await launch.bring_up(FakeApi({}), run, parts, quiet())
    assert [failure.part.name for failure in run.failed] == ["babysitter_8001", "babysitter_8011"]


async def test_a_process_that_is_gone_or_a_zombie_has_ended(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = start(state)
    as_a_stranger_sees_it(monkeypatch)
    psutil.Process(launched.pid).kill()
    await asyncio.to_thread(os.waitid, os.P_PID, launched.pid, os.WEXITED | os.WNOWAIT)
    assert not launched.is_ours()
    assert (await ready.observe(FakeApi({}), launched)).readiness is Readiness.ENDED


async def test_a_strangers_answer_does_not_count_while_our_process_has_no_such_port(state: StateDir) -> None:
    launched = start(state)
    seen = await ready.observe(FakeApi({f"{launched.url}/health": {"status": "healthy"}}), launched)
    assert (seen.readiness, seen.reason) == (Readiness.STARTING, "starting")


async def test_a_service_is_awaited_past_the_machines_proxy(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    port = free_port()
    (state.root / "registry" / "__main__.py").write_text(
        "import http.server as h\nclass H(h.BaseHTTPRequestHandler):\n    def do_GET(self):\n        self.send_response(200)\n"
        "        self.end_headers()\n        self.wfile.write(b'{}')\n"
        f"h.HTTPServer(('127.0.0.1', {port}), H).serve_forever()\n"
    )
    run = run_of(state)
    async with aiohttp.ClientSession() as session:
        await asyncio.wait_for(launch.bring_up(Api(session), run, [part(port=port)], quiet()), 30)
    assert run.failed == []


def test_a_server_is_ready_loading_or_over_as_its_babysitter_says() -> None:
    assert ready.server({"status": "healthy", "infinilm_server_running": True}).readiness is Readiness.READY
    loading = ready.server({"status": "waiting_for_ready", "error_message": "exited with code 1\nTHE LOG'S END"})
    assert (loading.readiness, loading.first_line) == (Readiness.LOADING, "waiting for ready: exited with code 1")
    failed = ready.server({"status": "failed", "error_message": "no such model"})
    assert (failed.readiness, failed.reason) == (Readiness.FAILED, "its server has failed: no such model")


def test_a_reason_is_told_once_while_it_stays_W49(capsys: pytest.CaptureFixture[str]) -> None:
    board = ProgressBoard(Output(sys.stdout, sys.stdout, as_json=False))
    for reason in ("loading", "loading", "loading shard 2", "loading shard 2"):
        board.show("babysitter_1", reason)
    assert capsys.readouterr().out == "babysitter_1: loading\nbabysitter_1: loading shard 2\n"


async def test_a_launch_waits_until_the_router_lists_every_model(state: StateDir) -> None:
    def models(*names: str) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name} for name in names]}

    def launched(name: str, kind: str, url: str) -> Launched:
        return Launched(name, kind, 1, ("", ""), "", url=url)

    run = run_of(state)
    run.running = {
        "router": launched("router", "router", "http://r"),
        "babysitter_1": launched("babysitter_1", "babysitter", "http://b"),
    }
    answers: dict[str, Any] = {"http://r/models": models("a", "b"), "http://b/models": models("a")}
    assert await launch.routed(FakeApi(answers), run, 0) == ""
    answers["http://b/models"] = models("a", "c")
    assert await launch.routed(FakeApi(answers), run, 0.2) == "it does not list c yet"
    answers["http://r/models"] = Problem("401", code=Code.REFUSED)
    assert "it asks for an API key" in await launch.routed(FakeApi(answers), run, 60)
    run.loading = ["babysitter_1"]
    assert await launch.routed(FakeApi({}), run, 60) == ""
