"""The routers that are compared: where each comes from, and the command that starts it.

Nothing is installed into the system: Debian's packages are unpacked, Python's go into virtual environments, both in the
work folder, which can be thrown away.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.router.machine import BenchError, free_port
from bench.router.workloads import MODEL

HERE = Path(__file__).resolve().parent
ACCESS_LOG_FLAG, ACCESS_LOG_SHARE = "--access-log-sample", "0.01"
MOST_CONNECTIONS = 16384


@dataclass(frozen=True, slots=True)
class Place:
    """Where a router is to listen, whom it has behind it, and a folder of its own."""

    port: int
    backend_port: int
    folder: Path
    files_limit: int
    pair: tuple[Path, Path] | None = None
    """Certificate and key, where it is to speak TLS."""


@dataclass(frozen=True, slots=True)
class Command:
    """How a router is started."""

    words: Sequence[str]
    folder: Path
    env: dict[str, str] = field(default_factory=dict)


def build_programs(work: Path) -> tuple[Path, Path]:
    """Compile the load generator and the backend, if they are older than their sources.

    Raises:
        BenchError: There is no compiler, or it found faults.
    """
    newest = max(source.stat().st_mtime for source in HERE.glob("*.[ch]"))
    built = []
    for name in ("load", "backend"):
        program = work / name
        if not program.exists() or program.stat().st_mtime < newest:
            compiler = shutil.which("cc") or shutil.which("gcc")
            if compiler is None:
                raise BenchError("no C compiler: install gcc")
            _run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(HERE / f"{name}.c")])
        built.append(program)
    return built[0], built[1]


class Debian:
    """A program of a Debian package: the system's, else unpacked into the work folder."""

    def __init__(self, name: str, config: str, packages: Sequence[str], flags: Sequence[str]) -> None:
        self.name, self.config, self.packages, self.flags = name, config, packages, flags

    def prepare(self, work: Path, *, install: bool) -> str:
        """The program's path."""
        unpacked = work / "deb" / "usr/sbin" / self.name
        found = shutil.which(self.name) or (str(unpacked) if unpacked.exists() else None)
        if found:
            return found
        if not install:
            raise BenchError(f"{self.name} is not here; --install fetches it")
        folder = work / "deb"
        folder.mkdir(exist_ok=True)
        _run(["apt-get", "download", *self.packages], folder)
        for package in folder.glob("*.deb"):
            _run(["dpkg-deb", "-x", str(package), str(folder)])
        return str(unpacked)

    def command(self, program: str, place: Place) -> Command:
        """Its command, with its configuration written."""
        text = (HERE / self.config).read_text()
        tls = " ssl; ssl_certificate {}; ssl_certificate_key {}".format(*place.pair) if place.pair else ""
        for word, value in (
            ("@TLS@", tls),
            ("@FOLDER@", place.folder),
            ("@PORT@", place.port),
            ("@BACKEND@", place.backend_port),
            ("@FILES@", place.files_limit),
        ):
            text = text.replace(word, str(value))
        config = place.folder / self.config
        config.write_text(text)
        libraries = ":".join(map(str, (Path(program).parents[2]).glob("usr/lib/*-linux-gnu")))
        env = {"LD_LIBRARY_PATH": libraries} if "deb" in Path(program).parts else {}
        return Command([program, *(flag.replace("@CONFIG@", str(config)) for flag in self.flags)], place.folder, env)


class PyPI:
    """A program of a package on PyPI, in a virtual environment of its own."""

    def __init__(self, name: str, package: str, flags: Sequence[str]) -> None:
        self.name, self.package, self.flags = name, package, flags

    def prepare(self, work: Path, *, install: bool) -> str:
        """The program's path."""
        home = work / f"venv-{self.package}"
        program = home / "bin" / self.package.partition("==")[0]
        if not program.exists():
            if not install:
                raise BenchError(f"{self.package} is not here; --install fetches it")
            _run([sys.executable, "-m", "venv", "--clear", str(home)])
            _run([str(home / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", self.package])
        return str(program)

    def command(self, program: str, place: Place) -> Command:
        """Its command."""
        words = ["--host", "127.0.0.1", "--port", str(place.port), "--policy", "round_robin"]
        words += ["--worker-urls", f"http://127.0.0.1:{place.backend_port}", "--prometheus-port", str(free_port())]
        return Command([program, *self.flags, *words], place.folder)


class Floor:
    """`floor.py`: passes bytes on over the same loop as ours, and reads none of them."""

    def prepare(self, work: Path, *, install: bool) -> str:  # noqa: ARG002 - all peers are asked alike
        """The interpreter."""
        return sys.executable

    def command(self, program: str, place: Place) -> Command:
        """Its command.

        Raises:
            BenchError: It is to speak TLS, which it does not.
        """
        if place.pair is not None:
            raise BenchError("floor speaks no TLS: leave it out of --targets")
        return Command([program, str(HERE / "floor.py"), str(place.port), str(place.backend_port)], place.folder)


class Ours:
    """The project's own router, started as an operator would: one worker, one static service, everything else as is."""

    def __init__(self, source: Path, flags: Sequence[str]) -> None:
        self.source, self.flags = source, flags

    def prepare(self, work: Path, *, install: bool) -> str:  # noqa: ARG002 - all peers are asked alike
        """The interpreter, once the router says that it can start."""
        if not (self.source / "router/__main__.py").is_file():
            raise BenchError(f"{self.source} holds no router")
        compiler = self.source / "deploy/python/compile.py"
        if "--no-compiled" not in self.flags and compiler.is_file():
            _run([sys.executable, str(compiler)], self.source)
        return sys.executable

    def command(self, program: str, place: Place) -> Command:
        """Its command; the registry it follows does not exist, so its table is the static one."""
        services = place.folder / "services.json"
        metadata = {"type": "openai-api", "models": [MODEL]}
        service = {"name": "bench", "host": "127.0.0.1", "port": place.backend_port, "metadata": metadata}
        services.write_text(json.dumps([service]))
        words = [program, "-m", "router", "--workers", "1", "--router-port", str(place.port)]
        words += ["--static-services", str(services), "--data-dir", str(place.folder)]
        words += ["--registry-url", f"http://127.0.0.1:{free_port()}", "--max-connections", str(MOST_CONNECTIONS)]
        if ACCESS_LOG_FLAG in _run([program, "-m", "router", "--help"], self.source):
            words += [ACCESS_LOG_FLAG, ACCESS_LOG_SHARE]
        if place.pair is not None:
            words += ["--tls-cert-file", str(place.pair[0]), "--tls-key-file", str(place.pair[1])]
        return Command([*words, *self.flags], self.source)


def make_pair(work: Path) -> tuple[Path, Path]:
    """A certificate and its key, of the kind that most servers have by now."""
    cert, key = work / "bench.pem", work / "bench.key"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=localhost"
    _run([*words.split(), "-keyout", str(key), "-out", str(cert)])
    key.chmod(0o600)
    return cert, key


Peer = Debian | PyPI | Floor | Ours
TLS_CLIENT = Debian(
    "haproxy",
    "tls_client.cfg",
    ["haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1"],
    ["-db", "-f", "@CONFIG@"],
)
"""Speaks TLS for the load generator, which does not."""

PEERS: dict[str, Peer] = {
    "nginx": Debian("nginx", "nginx.conf", ["nginx"], ["-c", "@CONFIG@"]),
    "haproxy": Debian(
        "haproxy",
        "haproxy.cfg",
        ["haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1"],
        ["-db", "-f", "@CONFIG@"],
    ),
    "floor": Floor(),
    "sglang": PyPI("sglang", "sglang-router==0.3.2", ["launch", "--log-level", "warn"]),
    "vllm": PyPI("vllm", "vllm-router==0.1.17", ["--log-level", "warning"]),
}


def _run(words: Sequence[str], folder: Path | None = None) -> str:
    """Run a helper program to its end; returns what it wrote.

    Raises:
        BenchError: It failed; shows what it said.
    """
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(words)} failed:\n{(done.stderr or done.stdout)[-2000:]}")
    return done.stdout
