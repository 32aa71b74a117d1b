"""The compiled data plane is used for the very sources it was made from, and for no others."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, cast

import psutil
import pytest

from router import compiled
from router.compiling import NICENESS, have_compiled
from router.settings import RouterSettings

USES = "from router import compiled; print(compiled.activate()); import router.proxy.response_writer as module; print(module.__file__)"


@pytest.fixture(scope="module")
def build() -> Path:
    """The build of these sources."""
    try:
        return compiled.build()
    except compiled.CannotCompile as error:
        pytest.skip(str(error))


def uses(root: Path) -> list[str]:
    """What a process that has the sources under `root` says it runs."""
    done = subprocess.run([sys.executable, "-c", USES], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, build: Path) -> Path:
    """A copy of the sources with their build."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("common", "router"):
        ignored = shutil.ignore_patterns("__pycache__", compiled.BUILDS.name)
        shutil.copytree(compiled.PACKAGE.parent / name, root / name, ignore=ignored)
    shutil.copytree(build, root / build.relative_to(compiled.PACKAGE.parent))
    return root


def test_a_build_of_these_sources_is_used(copy: Path) -> None:
    active, file = uses(copy)
    assert active == "True"
    assert Path(file).is_relative_to(copy / "router" / "_compiled")


def test_a_stale_build_is_never_used(copy: Path) -> None:
    source = copy / "router" / "facts.py"
    before = source.read_text()
    source.write_text(before + "\n")
    try:
        assert uses(copy) == ["False", str(copy / "router" / "proxy" / "response_writer.py")]
    finally:
        source.write_text(before)


def test_every_listed_module_is_built(build: Path) -> None:
    built = {file.name.split(".")[0] for file in build.rglob("*.so")}
    assert {name.rpartition(".")[2] for name in compiled.MODULES} <= built


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled, "folder", lambda: tmp_path / "missing")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(compiled.CannotCompile, match="apt-get install gcc"):
        compiled.build()


@pytest.mark.usefixtures("build")
def test_what_the_compiler_says_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled, "folder", lambda: tmp_path / "missing")
    monkeypatch.setattr(compiled, "BUILDS", tmp_path)
    monkeypatch.setattr(compiled, "MODULES", ("router.no_such_module",))
    with pytest.raises(compiled.CannotCompile, match="no_such_module"):
        compiled.build()
    assert list(tmp_path.iterdir()) == []


class WorkerPool:
    """Stands in for the workers: notes that they were told to renew themselves."""

    rolled = 0
    environment: ClassVar = {"PATH": os.defpath}

    async def roll(self) -> None:
        self.rolled += 1


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Stands in for the interpreter that builds; there is no build, and all that one needs."""
    monkeypatch.setattr(compiled, "folder", lambda: tmp_path / "missing")
    monkeypatch.setattr(compiled, "check_tools", lambda: None)
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))
    program.touch(0o755)
    return program


@pytest.mark.parametrize(("script", "rolled"), [("exit 0", 1), ("echo no room >&2; exit 69", 0)])
async def test_workers_are_renewed_once_the_build_is_there(python: Path, script: str, rolled: int) -> None:
    python.write_text(f"#!/bin/sh\n{script}\n")
    pool = WorkerPool()
    await have_compiled(cast("Any", pool), RouterSettings())
    assert pool.rolled == rolled


@pytest.mark.parametrize("wanted", [True, False])
async def test_workers_stay_as_they_are_without_a_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, wanted: bool
) -> None:
    monkeypatch.setattr(compiled, "folder", lambda: tmp_path / "missing")
    monkeypatch.setenv("PATH", str(tmp_path))
    pool = WorkerPool()
    await have_compiled(cast("Any", pool), RouterSettings(compiled=wanted))
    assert pool.rolled == 0


async def test_a_build_ends_with_the_router(python: Path, tmp_path: Path) -> None:
    python.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nsleep 600\n")
    building = asyncio.ensure_future(have_compiled(cast("Any", WorkerPool()), RouterSettings()))
    async with asyncio.timeout(20):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.01)
        child = psutil.Process(int((tmp_path / "pid").read_text()))
        while child.nice() != NICENESS or not child.children():
            await asyncio.sleep(0.01)
    family = [child, *child.children()]
    building.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await building
    assert psutil.wait_procs(family, timeout=10)[1] == []
