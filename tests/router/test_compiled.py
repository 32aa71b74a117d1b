"""The compiled data plane is used for the very sources it was made from, and for no others; a router never makes it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from router import compiled
from tests.ports import free_port

pytestmark = pytest.mark.timeout(600)  # it compiles, if the suite did not beforehand
PROGRAM = compiled.ROOT / "deploy" / "python" / "compile.py"
USES = "from router import compiled; print(compiled.activate()); import router.proxy.engine as module; print(module.__file__)"


def run_program(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "SVC_COMPILE"} | variables
    return subprocess.run(
        [sys.executable, PROGRAM, *words], env=env, capture_output=True, text=True, check=False, timeout=500
    )


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_program", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build() -> Path:
    """The build of these sources, in the environment that runs the tests."""
    done = run_program()
    if done.returncode == 69:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    found = compiled.find()
    assert found is not None
    return found


def uses(root: Path) -> list[str]:
    """What a process that has the sources under `root` says it runs."""
    done = subprocess.run([sys.executable, "-c", USES], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the sources; the build in the environment is of theirs, too."""
    for name in ("common", "router"):
        shutil.copytree(compiled.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_a_build_of_these_sources_is_used(build: Path, copy: Path) -> None:
    active, file = uses(copy)
    assert active == "True"
    assert Path(file).is_relative_to(build)


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("changed", ["facts", "model"])
def test_a_stale_build_is_never_used(copy: Path, changed: str) -> None:
    """One of them is compiled, the other tells those what types it has."""
    assert ("router.model" in compiled.MODULES, "router.facts" in compiled.MODULES) == (False, True)
    with (copy / "router" / f"{changed}.py").open("a") as source:
        source.write("\n")
    assert uses(copy) == ["False", str(copy / "router" / "proxy" / "engine.py")]


@pytest.mark.usefixtures("build")
def test_a_change_elsewhere_costs_no_build(copy: Path) -> None:
    for name in ("router/control/app.py", "router/master.py", "common/service.py"):
        with (copy / name).open("a") as source:
            source.write("\n")
    assert uses(copy)[0] == "True"


@pytest.mark.usefixtures("build")
def test_a_build_for_another_interpreter_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "SUFFIX", ".cpython-999-x86_64-linux-gnu.so")
    assert compiled.find() is None


def test_every_listed_module_is_built(build: Path) -> None:
    built = {str(file.relative_to(build)).split(".")[0].replace("/", ".") for file in build.rglob("*.so")}
    assert set(compiled.MODULES) <= built


def test_what_is_there_is_not_made_again(build: Path) -> None:
    before = (build / compiled.LIST).stat().st_mtime_ns
    done = run_program()
    assert (done.returncode, done.stdout) == (0, "")
    assert (build / compiled.LIST).stat().st_mtime_ns == before


def test_another_mypyc_makes_it_again(build: Path, program: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(build, tmp_path / build.name)
    assert program.is_there(tmp_path)
    (tmp_path / build.name / program.TOOL).write_text("0.1")
    assert not program.is_there(tmp_path)


def test_builds_make_room_for_a_new_one_and_nothing_else_does(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def translated(work: Path) -> None:
        (work / "out").mkdir()

    monkeypatch.setattr(program, "translate_in", translated)
    for number in range(program.KEPT + 1):
        old = tmp_path / f"old-{number}"
        old.mkdir()
        (old / program.compiled.LIST).write_text("")
    for other in ("bin", "include", "lib"):
        (tmp_path / other).mkdir()
    program.build(tmp_path)
    left = {one.name for one in tmp_path.iterdir()}
    assert left >= {"bin", "include", "lib"}
    assert len(left) == 3 + program.KEPT


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    done = run_program(str(tmp_path / "target"), PATH=str(tmp_path))
    assert done.returncode == 69
    assert "apt-get install gcc libc6-dev python3-dev" in done.stdout
    assert not (tmp_path / "target").exists()


def test_without_pythons_headers_it_says_what_to_install(tmp_path: Path) -> None:
    """As on a Debian with gcc and python3, and without python3-dev."""
    compiler = tmp_path / "cc"
    compiler.write_text(
        "#!/bin/sh\necho '<stdin>:1:10: fatal error: Python.h: No such file or directory' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    done = run_program(str(tmp_path / "target"), CC=str(compiler))
    assert done.returncode == 69
    assert "Python.h: No such file" in done.stdout
    assert "apt-get install libc6-dev python3-dev" in done.stdout


def test_it_can_be_left_out(tmp_path: Path) -> None:
    done = run_program(str(tmp_path), SVC_COMPILE="no")
    assert done.returncode == 69
    assert "the router runs from its sources" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("build")
def test_what_the_compiler_says_is_shown(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(
        "#!/bin/sh\ncase \"$*\" in *-fsyntax-only*) exit 0 ;; esac\necho 'no room for it' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    done = run_program(str(tmp_path / "target"), CC=str(compiler))
    assert done.returncode == 1
    assert "no room for it" in done.stdout
    assert list((tmp_path / "target").iterdir()) == []


def events(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


@pytest.mark.e2e
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize(
    ("change", "flag", "is_compiled", "said"),
    [(False, "--compiled", True, 0), (True, "--compiled", False, 1), (False, "--no-compiled", False, 0)],
)
def test_a_router_uses_a_build_or_says_once_why_not_and_never_makes_one(
    copy: Path, *, change: bool, flag: str, is_compiled: bool, said: int
) -> None:
    if change:
        with (copy / "router" / "facts.py").open("a") as source:
            source.write("\n")
    log = copy / "router.log"
    flags = f"{flag} --workers 2 --router-port {free_port()} --registry-url= --data-dir {copy / 'data'}"
    command = [sys.executable, "-m", "router", *flags.split()]
    with log.open("w") as out, subprocess.Popen(command, cwd=copy, stdout=out, stderr=out) as router:
        try:
            serving: list[object] = []
            limit = time.monotonic() + 60
            while len(serving) < 2 and time.monotonic() < limit:
                serving = [event["compiled"] for event in events(log) if event["event"] == "worker.serving"]
                time.sleep(0.05)
            assert serving == [is_compiled] * 2, log.read_text()
            reasons = [str(event["reason"]) for event in events(log) if event["event"] == "workers.not_compiled"]
            assert len(reasons) == said
            assert all("changed since" in reason and "script/setup.sh" in reason for reason in reasons)
            children = [" ".join(child.cmdline()) for child in psutil.Process(router.pid).children(recursive=True)]
            assert len(children) == 2
            assert all("router.worker_main" in child for child in children)
        finally:
            router.terminate()
    assert router.returncode == 0
