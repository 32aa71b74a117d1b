import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the scripts and what they read first."""
    folder = tmp_path / "a project"
    shutil.copytree(ROOT / "script", folder / "script")
    for name in ("common", "config", "logs"):
        (folder / name).mkdir()
    return folder
