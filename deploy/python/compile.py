"""Compile the router's data plane: `python deploy/python/compile.py [FOLDER]`.

Translates `router.compiled.MODULES` to C with mypyc and has that compiled, into a folder of FOLDER; without one, of the
Python environment that runs this. Nothing is done if what lies there was made from these sources by this mypyc.
script/setup.sh and the wheel's build hook call it; a router never does.

Needs mypy, setuptools, msgspec and httptools (whose types the modules use), a C compiler (`CC`), and C's and Python's headers.
Exit codes: 0 it is there; 69 it cannot be made here, or SVC_COMPILE=no: the router runs from its sources; 1 it failed.
"""

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2]))
from router import compiled  # noqa: E402 - only now

UNAVAILABLE = 69  # as common/exits.py has it
BUILT_WITH = ("mypy", "setuptools", "msgspec", "httptools")
KEPT = 3
"""Builds in an environment: of the branches that one changes between, of trees that share it."""
TRANSLATE, SAYS = "--translate", "compile: "
TOOL = "mypyc"
"""Names the mypyc that made a build."""
TYPES = """\
[mypy]
ignore_missing_imports = True
follow_imports = skip
[mypy-router.*,common.*,msgspec.*,httptools.*]
follow_imports = normal
"""
"""Other packages are Any, whether they are installed or not: the result does not depend on it, and takes a sixth of the time."""


class CannotCompile(Exception):
    """The text says why, and what to do."""


def say(text: str) -> None:
    """A line of progress."""
    print(SAYS + text, flush=True)  # noqa: T201 - a program's answer


def check_tools() -> None:
    """See that there is what a build needs.

    Raises:
        CannotCompile: A package, the C compiler or a header is missing.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    include = sysconfig.get_path("include")
    command = [*compiler, f"-I{include}", "-fsyntax-only", "-x", "c", "-"]
    try:
        done = subprocess.run(  # noqa: S603 - the compiler that setuptools runs too
            command, input="#include <Python.h>\n", capture_output=True, text=True, check=False, timeout=60
        )
    except OSError as error:
        raise CannotCompile("no C compiler, for example: apt-get install gcc libc6-dev python3-dev") from error
    if done.returncode != 0:
        output = (done.stderr.strip().splitlines() or ["it says nothing"])[0]
        raise CannotCompile(f"headers of C or Python are missing ({output}): apt-get install libc6-dev python3-dev")
    missing = [name for name in BUILT_WITH if importlib.util.find_spec(name) is None]
    if missing:
        raise CannotCompile(f"{', '.join(missing)}: not in this Python environment ({sys.prefix})")


def read_by(modules: Iterable[str]) -> list[str]:
    """Files of `modules` and of all that they import of ours: what the translation depends on."""
    waiting, files = list(modules), set()
    while waiting:
        path = waiting.pop().replace(".", "/")
        file = next((one for one in (f"{path}.py", f"{path}/__init__.py") if (compiled.ROOT / one).is_file()), None)
        if file is None or file in files or path.split("/")[0] not in ("common", "router"):
            continue
        files.add(file)
        for node in ast.walk(ast.parse((compiled.ROOT / file).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [name.name for name in node.names]
    return sorted(files)


@contextlib.contextmanager
def side_by_side(compiler: Any) -> Iterator[None]:
    """Have a compiler of setuptools work on a file per processor at a time; it would take one after the other."""
    compile_one, link = compiler._compile, compiler.link_shared_object  # noqa: SLF001 - there is no other way in
    waiting: list[Future[None]] = []

    def link_when_compiled(*args: Any, **named: Any) -> None:
        for number, one in enumerate(waiting, 1):
            one.result()
            if number % 20 == 0:
                say(f"{number} of {len(waiting)} C files")
        waiting.clear()
        link(*args, **named)

    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        compiler._compile = lambda *args: waiting.append(pool.submit(compile_one, *args))  # noqa: SLF001 - see above
        compiler.link_shared_object = link_when_compiled
        yield
    finally:
        pool.shutdown(cancel_futures=True)


def translate() -> None:
    """Compile the sources in the current folder; the result is in its `out`."""
    from mypyc.build import mypycify  # noqa: PLC0415 - these may be missing, which `check_tools` tells
    from setuptools import Distribution  # noqa: PLC0415
    from setuptools.command.build_ext import build_ext  # noqa: PLC0415
    from setuptools.errors import BaseError, CCompilerError  # noqa: PLC0415

    class Build(build_ext):
        def build_extensions(self) -> None:
            with side_by_side(self.compiler):
                super().build_extensions()

    Path("mypy.ini").write_text(TYPES)
    files = [module.replace(".", "/") + ".py" for module in compiled.MODULES]
    # A C file for each module, to be compiled beside one another.
    extensions = mypycify(["--config-file=mypy.ini", *files], opt_level="2", debug_level="0", multi_file=True)
    say(f"{len(files)} modules are translated to C")
    build = Build(Distribution({"name": "compiled", "ext_modules": extensions}))
    build.build_lib, build.build_temp = "out", "objects"
    build.ensure_finalized()
    try:
        build.run()
    except (BaseError, CCompilerError) as error:  # the compiler has said why
        sys.exit(str(error))


def translate_in(work: Path) -> None:
    """`translate` a copy of the sources in the folder `work`, in a process whose current folder that is.

    Raises:
        CannotCompile: It failed; with the last that it said.
    """
    for room in ("router", "common"):
        shutil.copytree(compiled.ROOT / room, work / room, ignore=shutil.ignore_patterns("__pycache__"))
    command, output = [sys.executable, str(HERE), TRANSLATE], []
    with subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:  # noqa: S603 - ourselves
        for line in child.stdout or ():
            if line.startswith(SAYS):
                print(line, end="", flush=True)  # noqa: T201 - see `say`
            else:
                output.append(line)
    if child.returncode != 0:
        raise CannotCompile("failed; the last it said:\n" + "".join(output[-15:]).rstrip())


def build(target: Path) -> None:
    """Make a build in a new folder of `target`.

    Raises:
        CannotCompile: It failed.
        OSError: Nothing can be written there.
    """
    target.mkdir(parents=True, exist_ok=True)
    lines = [compiled.SUFFIX, *(f"{compiled.digest(name)} {name}" for name in read_by(compiled.MODULES))]
    with (
        tempfile.TemporaryDirectory(prefix="svc-compile-") as work,
        tempfile.TemporaryDirectory(prefix=".new-", dir=target) as new,
    ):
        translate_in(Path(work))
        made = Path(new, "out")
        shutil.copytree(Path(work, "out"), made)
        (made / compiled.LIST).write_text("\n".join(lines) + "\n")
        (made / TOOL).write_text(version())
        place = target / hashlib.sha256((made / compiled.LIST).read_bytes()).hexdigest()[:16]
        shutil.rmtree(place, ignore_errors=True)  # by another mypyc
        made.rename(place)
    builds = [one for one in target.iterdir() if (one / compiled.LIST).is_file()]  # what else lies there is not ours
    for old in sorted(builds, key=lambda one: one.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def version() -> str:
    """Of the mypyc that is here."""
    return importlib.metadata.version("mypy")


def is_there(target: Path) -> bool:
    """True if `target` has a build of these sources by this mypyc, or by any where there is none."""
    fitting = [one for one in target.iterdir() if compiled.fits(one)] if target.is_dir() else []
    return any(importlib.util.find_spec("mypy") is None or (one / TOOL).read_text() == version() for one in fitting)


def main() -> int:
    """Build, and say so; returns the exit code."""
    began = time.monotonic()
    if sys.argv[1:] == [TRANSLATE]:
        translate()
        return 0
    target = Path(sys.argv[1]).resolve() if sys.argv[1:] else compiled.FOLDERS[-1]
    if os.environ.get("SVC_COMPILE") == "no":
        say("not wanted (SVC_COMPILE=no): the router runs from its sources")
        return UNAVAILABLE
    if is_there(target):
        return 0
    try:
        check_tools()
    except CannotCompile as error:
        say(f"{error}. Until then the router runs from its sources, which costs it about half as much CPU again")
        return UNAVAILABLE
    try:
        build(target)
    except (CannotCompile, OSError) as error:
        say(f"{error}\nThe router runs from its sources")
        return 1
    say(f"the router's data plane is compiled, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
