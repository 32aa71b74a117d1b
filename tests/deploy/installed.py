"""Packages built from this tree, and an environment that has them and nothing of the tree."""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build(source: Path, target: Path, *kinds: str, **variables: str) -> list[Path]:
    """Build `source` into `target`, without the network; a pure wheel, if `variables` do not say otherwise."""
    env = {**os.environ, "SVC_COMPILE": "no", **variables}
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target), *(f"-t{kind}" for kind in kinds)]
    done = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return sorted(target.iterdir())


def environment(folder: Path, wheel: Path) -> Path:
    """A fresh environment with `wheel`; what it depends on is taken from the one that runs the tests. Its `bin`."""
    uv = shutil.which("uv")
    venv.create(folder, with_pip=uv is None, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # A path file inside a path that a path file names is not read: an editable install of the tree stays out.
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    python = folder / "bin" / "python"
    tool = [uv, "pip", "install", "--quiet", "--offline", "--compile-bytecode", "--python", str(python)] if uv else [
        str(python), "-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check"]  # fmt: skip
    done = subprocess.run(
        [*tool, "--no-deps", str(wheel)], cwd=folder, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def bare_environment(programs: Path) -> dict[str, str]:
    """What a program finds that is started by hand: no variable of the tests, no path into the tree."""
    kept = {name: value for name, value in os.environ.items() if name in ("LANG", "TMPDIR")}
    return {**kept, "PATH": f"{programs}:/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONUNBUFFERED": "1"}
