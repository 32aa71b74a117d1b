"""The operator's page names every call."""

from pathlib import Path

from babysitter.api import ROUTES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "babysitter.md").read_text()


def test_every_call_has_its_row() -> None:
    for route in ROUTES:
        assert f"`{route.method} {route.path}" in PAGE, route
