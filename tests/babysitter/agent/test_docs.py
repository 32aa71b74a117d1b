"""The operator's page names every setting and every call of the agent, and the description every route."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from babysitter.agent.api import AgentContext
from babysitter.agent.routes import describe, make_app
from babysitter.agent.settings import ENV_PREFIX, PLAIN_ENV, AgentSettings
from common.settings import options

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "agent.md").read_text()


def routes() -> set[tuple[str, str]]:
    app = make_app(AgentContext(cast("Any", SimpleNamespace()), "n"))
    return {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }


def test_every_setting_has_its_row() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    for setting in options(AgentSettings, ENV_PREFIX):
        described = setting.info.description or ""
        assert any(row.startswith(f"| `{setting.key}` |") and described in row for row in rows), setting.key


def test_every_variable_of_the_release_server_is_named() -> None:
    assert [name for name in PLAIN_ENV if name not in PAGE] == []


def test_every_call_has_its_row() -> None:
    for method, path in routes():
        assert f"`{method} {path}" in PAGE or f"`{path}`" in PAGE, (method, path)


def test_every_call_is_described() -> None:
    described = {(method.upper(), path) for path, item in describe()["paths"].items() for method in item}
    assert described == routes()
