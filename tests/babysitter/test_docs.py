"""The operator's page names every setting and every call."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from babysitter.api import Source, make_app
from babysitter.settings import ENV_PREFIX, BabysitterSettings
from common.settings import options

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "babysitter.md").read_text()


def test_every_setting_has_its_row() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    for setting in options(BabysitterSettings, ENV_PREFIX):
        described = setting.info.description or ""
        assert any(row.startswith(f"| `{setting.key}` |") and described in row for row in rows), setting.key


def test_every_call_has_its_row() -> None:
    app = make_app(Source(cast("Any", SimpleNamespace()), None, 0.0))
    for route in app.router.routes():
        if route.method != "HEAD" and route.resource is not None:
            assert f"`{route.method} {route.resource.canonical}" in PAGE, route
