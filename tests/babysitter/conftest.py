"""What several test modules of the room share."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.babysitter.real import PROJECT, ask, until
from tests.babysitter.stand_in.index import Index
from tests.babysitter.stand_in.wheels import make_wheel, suite
from tests.ports import free_port

BUILD = "build-1b83940b24"
VERSIONS = ("0.0.0+1b83940b24", "2.3.0", "2.3.0+local.9", "260113.3+inference.2026.2384.8fb6d540")


class Registry:
    """A real registry that can be killed and started anew with nothing remembered."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.lives = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        self.lives += 1
        data = self.directory / f"registry-{self.lives}"
        argv = [sys.executable, "-m", "registry", "--port", str(self.port), "--data-dir", str(data), *more]
        with (self.directory / "registry.log").open("ab") as out:
            self.process = subprocess.Popen(argv, cwd=PROJECT, stdout=out, stderr=out)
        until("the registry answers", lambda: ask(f"{self.url}/health"))

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture
def router_port(tmp_path: Path, registry: Registry) -> Iterator[int]:
    """Of a router that follows the registry."""
    port = free_port()
    argv = [sys.executable, "-m", "router", "--router-port", str(port), "--registry-url", registry.url]
    with (
        (tmp_path / "router.log").open("wb") as out,
        subprocess.Popen(argv, cwd=PROJECT, stdout=out, stderr=out) as router,
    ):
        until("the router answers", lambda: ask(f"http://127.0.0.1:{port}/health"))
        yield port
        router.terminate()


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """A devpi-server with several builds of the stand-in packages."""
    directory = tmp_path_factory.mktemp("devpi")
    made = Index(directory)
    try:
        made.start()
        made.upload(make_wheel(directory / "wheels", "stand-in-dep", "1.0"))
        for version in VERSIONS:
            made.upload(*suite(directory / "wheels", version))
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose environments outlive a test: the first replica of a build deploys it, the others reuse it."""
    return tmp_path_factory.mktemp("shared")
