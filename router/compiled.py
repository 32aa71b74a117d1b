"""The compiled data plane: a worker's busiest modules as C extensions, made by mypyc, used only if they fit the sources.

The Python files are the truth, and they are always enough. `python -m router.compiled` translates them into a folder
named after the hash of what they say, and a worker imports from it only while that hash is still theirs. So a file that
changed, another Python or another version never meets a stale build: it runs the sources, and is right, if not as fast.
"""

import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from common.exits import Exit

PACKAGE = Path(__file__).resolve().parent
BUILDS = PACKAGE / "_compiled"
MODULES = (
    "router.counters",
    "router.candidates",
    "router.dispatch",
    "router.facts",
    "router.outlier",
    "router.policy.affinity",
    "router.policy.blocks",
    "router.policy.cache_size",
    "router.policy.cache_type",
    "router.policy.choose",
    "router.policy.cost",
    "router.policy.decision",
    "router.policy.fleet_view",
    "router.policy.least_loaded",
    "router.policy.models",
    "router.policy.pace",
    "router.policy.prefix_index",
    "router.policy.replica_view",
    "router.policy.round_robin",
    "router.policy.session",
    "router.policy.slow_start",
    "router.policy.usage",
    "router.policy.wait",
    "router.policy.writing",
    "router.proxy.access_log",
    "router.proxy.answering",
    "router.proxy.answers",
    "router.proxy.attempt",
    "router.proxy.checks",
    "router.proxy.chunked",
    "router.proxy.connector",
    "router.proxy.cors",
    "router.proxy.downstream",
    "router.proxy.engine",
    "router.proxy.exchange",
    "router.proxy.head",
    "router.proxy.headers",
    "router.proxy.heads",
    "router.proxy.limits",
    "router.proxy.needs",
    "router.proxy.paths",
    "router.proxy.response_writer",
    "router.proxy.sides",
    "router.proxy.spelling",
    "router.proxy.upstream",
    "router.proxy.watch",
    "router.retry",
    "router.serves",
    "router.sharing",
    "router.silence",
)
"""What runs for every request. Nothing in them may need what mypyc leaves out: slots in a dataclass, a non-native base."""
KEPT = 3
"""Builds of earlier sources that stay: a router that still runs one starts its workers from it."""
_SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
_TRANSLATE = """\
import sys
from mypyc.build import mypycify
from setuptools import Distribution
out, *files = sys.argv[1:]
extensions = mypycify(["--ignore-missing-imports", *files], opt_level="2", debug_level="0", strip_asserts=False)
build = Distribution({"name": "compiled", "ext_modules": extensions}).get_command_obj("build_ext")
build.build_lib, build.build_temp = out, "objects"
build.ensure_finalized()
build.run()
"""


class CannotCompile(Exception):
    """There is no build; the text says why and what to do."""


def folder(package: Path = PACKAGE) -> Path:
    """Where the build of exactly these sources is, or would be."""
    digest = hashlib.sha256(_SUFFIX.encode())
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes() + b"\0")
    return package / BUILDS.name / digest.hexdigest()[:16]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules in a build before Python looks for their sources."""

    def __init__(self, build: Path) -> None:
        self._build = build

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The extension's spec, or None for a module that is not compiled."""
        file = self._build / (fullname.replace(".", "/") + _SUFFIX)
        return importlib.util.spec_from_file_location(fullname, file) if file.exists() else None


def activate() -> bool:
    """Import the data plane compiled from here on, if it is built; returns whether it is.

    To be called before the first import of `MODULES`.
    """
    build = folder()
    if not build.is_dir():
        return False
    sys.meta_path.insert(0, _Finder(build))
    return True


def check_tools() -> None:
    """See that there is what a build needs.

    Raises:
        CannotCompile: mypyc or a C compiler is missing, or the folder cannot be written.
    """
    if importlib.util.find_spec("mypyc") is None or importlib.util.find_spec("setuptools") is None:
        raise CannotCompile("mypy and setuptools are needed: pip install 'inference-svc[compile]'")
    if shutil.which(os.environ.get("CC", "cc")) is None:
        raise CannotCompile("a C compiler is needed, for example: apt-get install gcc libc6-dev python3-dev")
    if not os.access(PACKAGE, os.W_OK):
        raise CannotCompile(f"{PACKAGE} cannot be written")


def build() -> Path:
    """Translate and compile; takes half a minute to two. Returns the build's folder; nothing is done if it is there.

    Raises:
        CannotCompile: A tool is missing (see `check_tools`), or a step failed.
    """
    target = folder()
    if target.is_dir():
        return target
    check_tools()
    try:
        BUILDS.mkdir(exist_ok=True)
        # The sources are copied and translated elsewhere: nothing but results ever lies in here.
        with (
            tempfile.TemporaryDirectory(prefix="svc-compile-") as work,
            tempfile.TemporaryDirectory(prefix="new-", dir=BUILDS) as new,
        ):
            _translate(Path(work))
            shutil.copytree(Path(work) / "out", Path(new) / "out")
            (Path(new) / "out").rename(target)
    except OSError as error:
        if target.is_dir():  # another process was faster
            return target
        raise CannotCompile(f"nothing could be written: {error}") from error
    _forget_old(target)
    return target


def _translate(work: Path) -> None:
    """Compile a copy of the sources in the folder `work`; the result is its `out`."""
    for source in (PACKAGE, PACKAGE.parent / "common"):
        shutil.copytree(source, work / source.name, ignore=shutil.ignore_patterns(BUILDS.name, "__pycache__"))
    (work / "out").mkdir()
    files = [module.replace(".", "/") + ".py" for module in MODULES]
    done = subprocess.run(  # noqa: S603 - our own interpreter and our own program
        [sys.executable, "-I", "-c", _TRANSLATE, "out", *files],
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotCompile("compiling failed; the last it said:\n" + "\n".join(done.stdout.splitlines()[-15:]))


def _forget_old(newest: Path) -> None:
    others = sorted((one for one in BUILDS.iterdir() if one != newest), key=lambda one: one.stat().st_mtime)
    for old in others[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def main() -> int:
    """`python -m router.compiled`: build, and say so."""
    began = time.monotonic()
    if folder().is_dir():
        print(f"router: the data plane is compiled already: {folder()}")  # noqa: T201 - a command's answer
        return Exit.OK
    print(f"router: compiling {len(MODULES)} modules; once per version, half a minute or so", flush=True)  # noqa: T201
    try:
        made = build()
    except CannotCompile as error:
        print(error, file=sys.stderr)  # noqa: T201 - see above
        return Exit.UNAVAILABLE
    print(f"router: compiled in {time.monotonic() - began:.0f} s: {made}")  # noqa: T201 - see above
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
