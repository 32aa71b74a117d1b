"""The tutorial of deployments, typed as printed: three models, one accelerator."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.docs.pages import blocks, page
from tests.docs.session import Session, in_the_project, matches

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Session]:
    session = in_the_project(tmp_path / "inference-svc")
    for name in ("REGISTRY_PORT", "ROUTER_PORT", "AGENT_PORT"):
        del session.environment[name]
    session.environment["SVC_STATE_DIR"] = str(session.folder)
    # `up` has the usual ports by itself; here it gets this session's.
    ports = {"registry": "18000", "router": "8000", "agent": "18100"}
    flags = " ".join(f"--{name}-port {session.ports[port]}" for name, port in ports.items())
    program = session.folder / ".venv" / "bin" / "svcctl"
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = up ]; then shift; set -- up {flags} "$@"; fi\nexec {sys.executable} -m ctl "$@"\n'
    )
    yield session
    session.end()


@pytest.mark.world
def test_a_reader_shares_one_accelerator_among_three_models(reader: Session) -> None:
    printed, ran, seen = "", 0, 0
    for block in blocks(page("deployments.md")):
        if block.kind == "bash" and block.is_run:
            seen = max(seen, len(of_this(reader)))
            printed = reader.type(block)
            ran += 1
        elif block.kind == "text":
            assert matches(reader.own(block.text), printed), f"{block.where}: the reader sees\n{printed}"
    assert ran > 9
    assert seen >= 4, "registry, router, agent and a babysitter are not found by their environment"
    psutil.wait_procs(of_this(reader), timeout=20)
    assert of_this(reader) == []


def of_this(reader: Session) -> list[psutil.Process]:
    """What the tutorial's commands started, babysitters and servers too: they inherit the environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get("SVC_STATE_DIR") == str(reader.folder):
                found.append(process)
    return found
