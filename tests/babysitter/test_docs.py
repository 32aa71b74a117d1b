"""The operator's page names every call."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from babysitter.api import ApiContext, make_app

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "babysitter.md").read_text()


def test_every_call_has_its_row() -> None:
    app = make_app(ApiContext(cast("Any", SimpleNamespace()), None, 0.0))
    for route in app.router.routes():
        if route.method != "HEAD" and route.resource is not None:
            assert f"`{route.method} {route.resource.canonical}" in PAGE, route
