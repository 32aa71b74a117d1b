"""Python processes of the suite that others of the suite start: they import the suite, and nobody's namesake of it.

Packages called `common` or `router` are in many a folder. A child that looked for ours in the folder that it was started in,
or along the caller's PYTHONPATH, would find those. So it is told not to look in its own folder (`-P`), and its PYTHONPATH is
the folder of our packages alone. What the caller's PYTHONPATH said is kept beside it, for the servers that it was meant for.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import common
from common import systemd

ROOT = Path(common.__file__).resolve().parent.parent
"""The folder that holds our packages."""
CHECKOUT = ROOT if (ROOT / "pyproject.toml").is_file() else None
"""The project's folder, when this runs from a source tree: paths of its files are relative to it."""
_IS_INSTALLED = (ROOT / "__init__.py").is_file()
SEARCH = os.pathsep.join(map(str, [ROOT, ROOT.parent] if _IS_INSTALLED else [ROOT]))
"""PYTHONPATH of our processes. Installed, ROOT is the package inference_svc; what it depends on lies beside that, wherever
it was installed to."""
PATH = "PYTHONPATH"
GIVEN = "SUITE_GIVEN_PYTHONPATH"
"""What PYTHONPATH was before we set it."""


def command(module: str, *words: str) -> list[str]:
    """The command line that runs `module` of ours under this interpreter; wants `environment`."""
    return [sys.executable, "-P", "-m", module, *words]


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """What a process of ours gets that was started by one with `env`."""
    theirs = given(env)
    return {**theirs, PATH: SEARCH, GIVEN: theirs.get(PATH, "")}


def given(env: Mapping[str, str]) -> dict[str, str]:
    """`env` as the caller made it, for programs that are not ours; what systemd told this process alone is left out."""
    theirs = env.get(GIVEN, env.get(PATH, ""))
    rest = {name: value for name, value in env.items() if name not in (GIVEN, PATH, *systemd.PRIVATE)}
    return {**rest, PATH: theirs} if theirs else rest
