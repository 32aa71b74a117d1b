import subprocess
import sys
from pathlib import Path

import pytest

from common import own_python


@pytest.mark.parametrize("theirs", [{}, {"PYTHONPATH": "/theirs:/more"}])
def test_what_the_caller_gave_comes_back_however_many_processes_lie_between_W30(theirs: dict[str, str]) -> None:
    env = {"HOME": "/root", **theirs}
    child = own_python.environment(env)
    assert child["PYTHONPATH"] == own_python.SEARCH
    assert own_python.environment(child) == child
    assert own_python.given(child) == own_python.given(env) == env


def test_a_process_of_ours_meets_no_namesake_W30(tmp_path: Path) -> None:
    for folder in ("here", "theirs"):
        for room in ("common", "registry"):
            (tmp_path / folder / room).mkdir(parents=True)
            (tmp_path / folder / room / "__init__.py").write_text("raise SystemExit('a namesake was imported')")
    env = {"PYTHONPATH": str(tmp_path / "theirs"), "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run(
        own_python.command("registry", "--help"),
        cwd=tmp_path / "here",
        env=own_python.environment(env),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
