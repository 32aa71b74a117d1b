"""The one name that the suite has among installed packages, and the programs that enter by it (docs/adr/0010).

A wheel holds the suite's packages inside this one, because names such as `common` and `router` are many a distribution's.
In a source tree they lie in the tree's own folder. Either way they are found there first, and neither in the folder that a
program is started in nor along a PYTHONPATH, which is meant for servers.
"""

import importlib
import os
import site
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE if (HERE / "router").is_dir() else HERE.parents[2]
"""The folder of our packages."""


def enter() -> None:
    """Have Python look for modules among ours first, then among installed ones, and nowhere else."""
    listed = {os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep)}  # noqa: PTH100 - as site does
    # Where this package was found there may be what it depends on (pip install --target), whoever names that folder.
    installed = {*site.getsitepackages(), site.getusersitepackages(), str(HERE.parent)}
    kept = [entry for entry in sys.path if entry and (entry in installed or entry not in listed)]
    sys.path[:] = [str(ROOT), *(entry for entry in kept if entry != str(ROOT))]


def run(package: str) -> int:
    """Run a program of the suite; returns its exit code."""
    enter()
    code: int = importlib.import_module(f"{package}.__main__").main()
    return code


registry = partial(run, "registry")
router = partial(run, "router")
agent = partial(run, "babysitter.agent")
babysitter = partial(run, "babysitter")
svcctl = partial(run, "ctl")
