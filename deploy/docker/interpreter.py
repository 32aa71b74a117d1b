"""Copy the Python that runs this to a folder of its own: interpreter.py TARGET. For images whose base has none, or another.

The copy has its standard library and the shared libraries that it was linked with, all but the C library's: it runs wherever
that is as new as here. Needs ldd and patchelf.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(sys.argv[1])
NAME = f"python{sys.version_info.major}.{sys.version_info.minor}"
LEFT_OUT = shutil.ignore_patterns(
    "site-packages", "dist-packages", "test", "__pycache__", "idlelib", "tkinter", "ensurepip"
)
LIBC = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|util|nsl|nss_.*))\.so.*")


def linked(file: Path) -> Iterator[Path]:
    """The shared libraries that `file` is linked with, but for the C library's."""
    said = subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=True).stdout  # noqa: S603, S607
    for name, where in re.findall(r"^\s*(\S+) => (/\S+)", said, re.MULTILINE):
        if not LIBC.fullmatch(name):
            yield Path(where)


def main() -> None:
    """Copy, then have each part look for its libraries beside it."""
    stdlib, program = TARGET / "lib" / NAME, TARGET / "bin" / NAME
    program.parent.mkdir(parents=True)
    shutil.copy2(Path(sys.executable).resolve(), program)
    (program.parent / "python3").symlink_to(NAME)
    shutil.copytree(
        sysconfig.get_path("stdlib"), stdlib, ignore=LEFT_OUT, symlinks=False, ignore_dangling_symlinks=True
    )
    shutil.copytree(sysconfig.get_path("include"), TARGET / "include" / NAME)
    modules = [program, *(stdlib / "lib-dynload").glob("*.so")]
    libraries = {path for module in modules for path in linked(module)}
    modules += [Path(shutil.copy2(library, TARGET / "lib" / library.name)) for library in libraries]
    for module in modules:
        up = "/".join([".."] * len(module.relative_to(TARGET).parts[:-1]))
        # Before LD_LIBRARY_PATH, which a server's image may set for its own.
        where = f"$ORIGIN/{up}/lib"
        subprocess.run(["patchelf", "--force-rpath", "--set-rpath", where, str(module)], check=True)  # noqa: S603, S607


if __name__ == "__main__":
    main()
