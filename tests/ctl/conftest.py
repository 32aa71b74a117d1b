"""A fake registry and a fake router, and svcctl run beside them in a thread."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ctl.app import run


@dataclass
class Done:
    """How a command ended, and what it said."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


class Screen(io.StringIO):
    """Text that counts as a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass
class Suite:
    """Both fakes: `answers` are (status, content) by "PLACE METHOD path"; `asked` is what came, with bodies."""

    registry: str
    router: str
    home: Path
    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, Any, dict[str, str]]] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    async def ctl(self, *argv: str, screen: bool = False) -> Done:
        """Run svcctl as a user would."""
        stdout, stderr = (Screen(), Screen()) if screen else (io.StringIO(), io.StringIO())
        env = {
            "HOME": str(self.home),
            "SVC_REGISTRY_URL": self.registry,
            "SVC_ROUTER_URL": self.router,
            "SVC_STATE_DIR": str(self.home / "state"),
            **self.env,
        }

        def body() -> int:
            try:
                return run(argv, env, stdout, stderr)
            except SystemExit as error:
                return int(error.code or 0)

        code = await asyncio.to_thread(body)
        return Done(code, stdout.getvalue(), stderr.getvalue())

    def calls(self, key: str) -> list[Any]:
        """Bodies of the calls to "PLACE METHOD path"."""
        return [body for asked, body, _ in self.asked if asked == key]


def record(name: str, **members: Any) -> dict[str, Any]:
    """A registry's record."""
    return {
        "name": name,
        "host": "127.0.0.1",
        "port": 8001,
        "url": "http://127.0.0.1:8001",
        "status": "running",
        "is_healthy": True,
        "metadata": {"type": "openai-api", "models": ["m"]},
        **members,
    }


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[Suite]:
    """The fakes answer 404 to what a test did not say."""
    found = Suite("", "", tmp_path)

    def make(place: str) -> web.Application:
        async def handle(request: web.Request) -> web.StreamResponse:
            key = f"{place} {request.method} {request.path}"
            raw = await request.read()
            found.asked.append((key, json.loads(raw) if raw else None, dict(request.headers)))
            answer = found.answers.get(key, (404, {"error": f"no {request.path}"}))
            if callable(answer):
                made: web.StreamResponse = await answer(request)
                return made
            status, content = answer if isinstance(answer, tuple) else (200, answer)
            return web.json_response(content, status=status)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        return app

    async with TestServer(make("registry")) as registry, TestServer(make("router")) as router:
        found.registry, found.router = str(registry.make_url("")).rstrip("/"), str(router.make_url("")).rstrip("/")
        yield found
