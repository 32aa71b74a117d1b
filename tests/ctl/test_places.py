"""Where svcctl looks when nobody said where."""

import os
from argparse import Namespace
from pathlib import Path

import pytest

from ctl import places
from ctl.problem import Problem


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without HOME and without an entry in the user database."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    return tmp_path / f"inference-svc-{os.geteuid()}"


def test_user_without_a_home_keeps_its_state_among_temporary_files_W32(homeless: Path) -> None:
    assert places.state_dir(Namespace(state_dir="~/.local/state/inference-svc")) == homeless
    assert places.state_dir(Namespace(state_dir="/given")) == Path("/given")


def test_place_of_another_user_is_not_taken_W32(homeless: Path) -> None:
    homeless.mkdir()
    os.chown(homeless, os.geteuid() + 1 if os.geteuid() == 0 else os.geteuid(), -1)
    if homeless.stat().st_uid == os.geteuid():
        pytest.skip("only root can make another user's directory")
    with pytest.raises(Problem, match="another user's"):
        places.state_dir(Namespace(state_dir="~/state"))
