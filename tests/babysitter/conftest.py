"""What several test modules of the room share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.babysitter.stand_in.index import Index
from tests.babysitter.stand_in.wheels import make_wheel, suite

BUILD = "build-1b83940b24"
VERSIONS = ("0.0.0+1b83940b24", "2.3.0", "2.3.0+local.9", "260113.3+inference.2026.2384.8fb6d540")


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
