import asyncio
from pathlib import Path

import pytest

from common.exits import ConfigurationError
from common.http.errors import ApiError
from registry.http.guard import EVERYTHING, FAILURES_PER_S, Grant, Guard, Level, make_guard
from tests.registry.conftest import Client, StartClient, body

READ, REGISTER, ADMIN = "r" * 32, "g" * 32, "a" * 32


def files(directory: Path) -> dict[str, tuple[str, ...]]:
    """Settings with one token of each kind; the register token is bound to names that begin with gpu-."""
    for name, token in (("read", READ), ("register", REGISTER), ("admin", ADMIN)):
        path = directory / name
        path.write_text(token + "\n")
        path.chmod(0o600)
    return {
        "read_token_file": (str(directory / "read"),),
        "register_token_file": (f"gpu-={directory / 'register'}",),
        "admin_token_file": (str(directory / "admin"),),
    }


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
async def guarded(start_registry: StartClient, tmp_path: Path) -> Client:
    return await start_registry(**files(tmp_path))


CALLS = [
    # method, path, name in the body, statuses for: nobody, a wrong token, read, register, admin
    ("GET", "/health", None, (200, 200, 200, 200, 200)),
    ("GET", "/services", None, (401, 401, 200, 200, 200)),
    ("GET", "/v1/replicas", None, (401, 401, 200, 200, 200)),
    ("GET", "/metrics", None, (401, 401, 200, 200, 200)),
    ("GET", "/nowhere", None, (401, 401, 404, 404, 404)),
    ("POST", "/services", "gpu-1", (401, 401, 403, 201, 201)),
    ("POST", "/services", "other", (401, 401, 403, 403, 201)),
    ("DELETE", "/services/gpu-1", None, (401, 401, 403, 404, 404)),
    ("DELETE", "/services/other", None, (401, 401, 403, 403, 404)),
    ("POST", "/services/other/heartbeat", None, (401, 401, 403, 403, 404)),
    ("POST", "/services/gpu-1/drain", None, (401, 401, 403, 404, 404)),
]


@pytest.mark.parametrize(("method", "path", "name", "expected"), CALLS)
async def test_each_token_may_do_its_own(
    guarded: Client, method: str, path: str, name: str | None, expected: tuple[int, ...]
) -> None:
    found = []
    for token in (None, "x" * 32, READ, REGISTER, ADMIN):
        headers = bearer(token) if token else {}
        content = body(name) if name else None
        async with guarded.request(method, path, json=content, headers=headers) as answer:
            found.append(answer.status)
    assert tuple(found) == expected


async def test_missing_token_is_told_how_to_ask(guarded: Client) -> None:
    async with guarded.get("/services") as answer:
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert (await answer.json()).keys() == {"error"}


async def test_wrong_tokens_are_limited_per_second(guarded: Client) -> None:
    statuses = [401]
    async with asyncio.timeout(5):  # a loaded machine may need more than a second for the first of them
        while statuses[-1] == 401:
            async with guarded.get("/services", headers=bearer("wrong")) as answer:
                statuses.append(answer.status)
    assert statuses[-1] == 429
    assert len(statuses) > FAILURES_PER_S
    async with guarded.get("/services", headers=bearer(READ)) as answer:
        assert answer.status == 200


def test_limit_on_wrong_tokens_is_for_one_address_and_one_second() -> None:
    now = [0.0]
    guard = Guard([(READ, Grant(Level.READ))], monotonic=lambda: now[0])

    def offer(address: str) -> int:
        with pytest.raises(ApiError) as caught:
            guard.admit("Bearer wrong", address)
        return caught.value.status

    assert [offer("a") for _ in range(11)] == [401] * 10 + [429]
    assert offer("b") == 401
    now[0] = 1.0
    assert offer("a") == 401


def test_open_guard_grants_everything() -> None:
    assert Guard().admit(None, "a") == EVERYTHING


def test_read_token_alone_is_a_configuration_error(tmp_path: Path) -> None:
    chosen = files(tmp_path)
    with pytest.raises(ConfigurationError, match="lets nobody register"):
        make_guard(chosen["read_token_file"], (), ())


def test_one_token_for_two_purposes_is_a_configuration_error(tmp_path: Path) -> None:
    chosen = files(tmp_path)
    with pytest.raises(ConfigurationError, match="the same token"):
        make_guard(chosen["read_token_file"], (), chosen["read_token_file"])


def test_readable_token_file_is_a_configuration_error(tmp_path: Path) -> None:
    chosen = files(tmp_path)
    (tmp_path / "admin").chmod(0o644)
    with pytest.raises(ConfigurationError, match="others can read it"):
        make_guard((), (), chosen["admin_token_file"])
