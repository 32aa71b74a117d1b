"""Environments of engines and their models: made once under `data/engines`, by whichever test asks first."""

import fcntl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLACE = HERE.parents[1] / "data" / "engines"
INSTALL_S = 1200.0
"""Generous: only a failure reaches it."""


def once(made: Path, make: Callable[[], object]) -> Path:
    """`made`, by `make` unless it is there; test workers may ask at once."""
    done = made.with_name(f"{made.name}.done")
    made.parent.mkdir(parents=True, exist_ok=True)
    with made.with_name(f"{made.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make()
            done.touch()
    return made


def run(*words: str) -> str:
    """What a program prints.

    Raises:
        CalledProcessError: It failed.
    """
    done = subprocess.run(
        [word for word in words if word], check=True, timeout=INSTALL_S, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def environment(folder: Path, *steps: tuple[str, ...]) -> None:
    """A new virtual environment; each step is what one `pip install` is told.

    Raises:
        CalledProcessError: Something cannot be installed.
    """
    run(sys.executable, "-m", "venv", "--clear", str(folder))
    for step in steps:
        pip(folder, *step)


def pip(folder: Path, *words: str) -> None:
    """`pip install` in an environment."""
    run(str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *words)
