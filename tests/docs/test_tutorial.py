"""A newcomer follows the tutorial: a fresh environment with the wheel, an empty directory, the commands as printed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.installed import ROOT, build, environment
from tests.docs.pages import TUTORIAL, blocks
from tests.docs.session import Session, matches, require

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]  # twenty commands, on a busy machine


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Session]:
    [wheel] = build(ROOT, tmp_path / "built", "wheel")
    programs = environment(tmp_path / "venv", wheel)
    folder = tmp_path / "empty"
    folder.mkdir()
    session = Session(folder, f"{tmp_path / 'typed'}:{programs}:/usr/bin:/bin")
    # `up` has the usual ports by itself; here it gets this session's, like every port that stands on the page.
    ports = {"registry": "18000", "router": "8000", "agent": "18100", "demo": "8001"}
    flags = " ".join(f"--{name}-port {session.ports[port]}" for name, port in ports.items())
    (tmp_path / "typed").mkdir()
    typed = tmp_path / "typed" / "svcctl"
    typed.write_text(
        f'#!/bin/sh\nif [ "$1" = up ]; then shift; exec {programs}/svcctl up {flags} "$@"; fi\n'
        f'exec {programs}/svcctl "$@"\n'
    )
    typed.chmod(0o755)
    yield session
    session.end()


def test_a_newcomer_can_follow_the_tutorial(newcomer: Session) -> None:
    require("curl")
    printed, ran = "", 0
    for block in blocks(TUTORIAL):
        if block.kind == "bash" and block.is_run:
            printed = newcomer.type(block)
            ran += 1
        elif block.kind == "text":
            assert matches(newcomer.own(block.text), printed), f"{block.where}: the reader sees\n{printed}"
    assert ran > 12
    assert newcomer.left() == []
