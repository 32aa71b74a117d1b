"""Real docker and a real booted systemd, on a Debian that is made for the purpose: no container registry is needed.

As root on Debian or a relative. Everything lies in one folder, runs in a network of its own, and ends with `close`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.deploy.installed import ROOT

PACKAGES = ("debootstrap", "docker.io", "iproute2", "iptables", "systemd-container", "tini")
INSIDE = (
    "systemd", "systemd-sysv", "dbus", "python3", "python3-venv", "python3-dev", "gcc", "libc6-dev", "patchelf", "git",
    "ca-certificates", "curl", "openssl", "procps", "netbase",
)  # fmt: skip
BASE = "FROM debian-of-ours\nRUN ln -s /usr/bin/python3 /usr/local/bin/python\nENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8\n"
BARE = "FROM debian-without-python\nENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8\n"
PASSED_ON = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_INDEX_URL", "PIP_TRUSTED_HOST")


def run(*argv: str | Path, check: bool = True, stdin: str = "", **more: Any) -> str:
    """What a command prints, errors included."""
    done = subprocess.run(
        [str(word) for word in argv],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **{"timeout": 1200, **more},
    )
    assert done.returncode == 0 or not check, f"{argv}: exit code {done.returncode}\n{done.stdout[-4000:]}"
    return str(done.stdout)


def within(seconds: float, what: str, check: Callable[[], Any]) -> Any:
    """The first true answer of `check`."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(AssertionError):
            if found := check():
                return found
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.3)


def install(*packages: str) -> None:
    """Debian packages that are missing; nothing that they bring is started."""
    if subprocess.run(["dpkg", "-s", *packages], capture_output=True, check=False).returncode:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        run("apt-get", "update", "-qq", env=environment)
        run("apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages, env=environment)


@dataclass
class Machines:
    """A folder with a Debian in it, and a network namespace in which things run."""

    folder: Path
    network: str = field(default_factory=lambda: f"svc-test-{os.getpid()}")
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def debian(self) -> Path:
        """The root file system."""
        return self.folder / "root"

    def make(self) -> None:
        """The Debian (a minute or two) and the network."""
        install(*PACKAGES)
        mirror = run("sh", "-c", "awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/*.sources").strip()
        mirror = mirror or "http://deb.debian.org/debian"
        include = f"--include={','.join(INSIDE)}"
        made = self.folder / "made"
        if not made.exists():
            run("debootstrap", "--variant=minbase", include, "bookworm", self.debian, mirror)
            made.touch()
        bundle = Path("/etc/ssl/certs/ca-certificates.crt")
        (self.debian / "etc/ssl/certs/ca-certificates.crt").write_bytes(bundle.read_bytes())
        (self.debian / "etc/resolv.conf").write_bytes(Path("/etc/resolv.conf").read_bytes())
        (self.debian / "etc/pip.conf").write_text(f"[global]\ncert = {bundle}\n")
        (self.debian / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")
        (self.debian / "etc/hostname").write_text("svc-test\n")
        run("ip", "netns", "add", self.network)
        self.stack.callback(run, "ip", "netns", "del", self.network, check=False)
        run("ip", "-n", self.network, "link", "set", "lo", "up")

    def there(self, *argv: str | Path, **more: Any) -> str:
        """Run a command in the network."""
        return run("nsenter", f"--net=/run/netns/{self.network}", *argv, **more)

    def asks(self, model: str = "mock-small") -> bool:
        """A completion through the router at its port."""
        body = f'{{"model": "{model}", "prompt": "Hi"}}'
        url = "http://127.0.0.1:8000/v1/completions"
        self.there(
            "curl", "-sf", "-m", "10", "-o", "/dev/null", url, "-H", "Content-Type: application/json", "-d", body
        )
        return True

    # -- docker

    @property
    def docker_environment(self) -> dict[str, str]:
        """DOCKER_BUILDKIT=0: the builder that every docker has."""
        return {**os.environ, "DOCKER_HOST": f"unix://{self.folder}/docker.sock", "DOCKER_BUILDKIT": "0"}

    def docker(self, *words: str | Path, **more: Any) -> str:
        return run("docker", *words, env=self.docker_environment, **more)

    @contextmanager
    def dockerd(self, *prefix: str, flags: tuple[str, ...] = ()) -> Iterator[None]:
        """A daemon of our own."""
        where = self.folder / "docker"
        argv = [*prefix, "dockerd", *flags, "--data-root", str(where), "--exec-root", str(self.folder / "docker-run")]
        argv += ["-p", str(self.folder / "docker.pid"), "-H", self.docker_environment["DOCKER_HOST"]]
        with (self.folder / "dockerd.log").open("ab") as log, subprocess.Popen(argv, stdout=log, stderr=log) as daemon:
            try:
                within(60, "dockerd answers", lambda: self.docker("info"))
                yield
            finally:
                daemon.terminate()
                daemon.wait(60)
                run("umount", self.folder / "docker-run/netns/default", check=False)  # it leaves this mounted

    def build_images(self) -> None:
        """`inference-svc` on Debian's Python, and `on-a-bare-base` on a base that has none."""
        bare = ("--exclude=./usr/lib/python3*", "--exclude=./usr/bin/python3*", "--exclude=./usr/bin/gcc*")
        cache = "--exclude=./var/cache/apt/archives/*"
        arguments = [f"--build-arg={name}={os.environ[name]}" for name in PASSED_ON if name in os.environ]
        with self.dockerd(flags=("--iptables=false", "--bridge=none")):
            for name, left_out in (("debian-of-ours", [cache]), ("debian-without-python", [cache, *bare])):
                packed = self.folder / f"{name}.tar"
                run("tar", "-C", self.debian, *left_out, "-cf", packed, ".")
                self.docker("import", packed, name)
                packed.unlink()
            self.docker("build", "-q", "-t", "python:3.11-slim", "-", stdin=BASE)
            self.docker("build", "-q", "-t", "bare", "-", stdin=BARE)
            build = ("build", "--network", "host", "-f", "deploy/docker/Dockerfile", *arguments)
            self.docker(*build, "-t", "inference-svc", ".", cwd=ROOT)
            self.docker(*build, "-t", "on-a-bare-base", "--build-arg", "BASE=bare", ".", cwd=ROOT)


@dataclass
class Booted:
    """The Debian of `machines`, booted by systemd-nspawn."""

    machines: Machines
    outer: subprocess.Popen[bytes] | None = None
    init: str = ""

    def nspawn(self, *words: str) -> list[str]:
        fixed = ("-q", "-D", str(self.machines.debian), "--register=no", "--keep-unit", "--machine=svctest")
        return ["systemd-nspawn", *fixed, "--console=pipe", f"--bind-ro={ROOT}:/src", *words]

    def boot(self) -> None:
        network = f"--network-namespace-path=/run/netns/{self.machines.network}"
        with (self.machines.folder / "console.log").open("ab") as console:
            self.outer = subprocess.Popen(
                self.nspawn("-b", network, "--link-journal=no"),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        outer = str(self.outer.pid)
        self.init = within(30, "systemd runs", lambda: run("pgrep", "-P", outer, "-x", "systemd").strip())

    def halt(self) -> None:
        if self.outer is not None:
            os.kill(int(self.init), signal.SIGRTMIN + 4)
            self.outer.wait(300)
            self.outer = None

    def inside(self, *argv: str, **more: Any) -> str:
        """Run a command in it."""
        path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
        return run("nsenter", "-a", "-t", self.init, "--", "env", "-i", path, *argv, **more)

    def sh(self, script: str, **more: Any) -> str:
        return self.inside("sh", "-ec", script, **more)
