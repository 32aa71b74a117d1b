"""The guides' commands work as printed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import GUIDES, blocks, page
from tests.docs.session import Session, in_the_project, matches, require

pytestmark = pytest.mark.e2e


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Session]:
    session = in_the_project(tmp_path / "inference-svc")
    yield session
    session.end()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "one-node" else pytest.mark.world) for name in GUIDES]
)
def test_a_reader_can_follow_the_guide_to_its_end(name: str, reader: Session) -> None:
    require("curl", "openssl", *(["etcd"] if name == "several-nodes" else []))
    if name != "one-node":
        reader.environment["LAUNCH_AGENT"] = "false"  # no other guide needs one: one process less to wait for
    printed = ""
    for block in blocks(page(f"guides/{name}.md")):
        if block.kind == "bash" and block.is_run:
            printed = reader.type(block)
        elif block.kind == "text" and block.is_run:
            assert matches(reader.own(block.text), printed), f"{block.where}: the reader sees\n{printed}"
    assert reader.left() == []
