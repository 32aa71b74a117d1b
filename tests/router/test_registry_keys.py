"""The registry's keys at a router: followed, kept on disk, and beside those of its file."""

import asyncio
import hashlib
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from common.discovery.registry_client import RegistryUnavailable
from common.exits import ConfigurationError
from common.wire.keys import KeyRecord, RouterKeys
from router import registry_keys
from router.assemble import make_client
from router.keys import Key, KeyRing
from router.registry_keys import RegistryKeys
from router.settings import RouterSettings
from tests.router.fakes import Plane, plain

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHAT = b'{"model":"m","messages":[]}'


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def record(name: str, secret: str, **more: Any) -> KeyRecord:
    return KeyRecord(name=name, created_at=NOW, sha256=digest(secret), **more)


class Registry:
    """Tells what the test puts into it; an exception is raised."""

    def __init__(self) -> None:
        self.says: asyncio.Queue[RouterKeys | Exception] = asyncio.Queue()
        self.asked: list[str] = []

    async def keys(self, version: str, _wait_s: int) -> RouterKeys:
        self.asked.append(version)
        said = await self.says.get()
        if isinstance(said, Exception):
            raise said
        return said


async def test_keys_are_followed_and_kept_where_only_the_router_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_keys, "AGAIN_S", 0.0)
    path, registry, told = tmp_path / "d" / "keys.json", Registry(), asyncio.Semaphore(0)
    keys = RegistryKeys(path, told.release)
    with structlog.testing.capture_logs() as lines:
        following = asyncio.ensure_future(keys.follow(cast("Any", registry)))
        registry.says.put_nowait(RouterKeys(version="v1", keys=[record("a", "s")]))
        registry.says.put_nowait(RegistryUnavailable("away"))
        registry.says.put_nowait(RegistryUnavailable("away"))
        registry.says.put_nowait(RouterKeys(version="v1", keys=[record("a", "s")]))
        registry.says.put_nowait(RouterKeys(version="v2", keys=[record("b", "s2")]))
        async with asyncio.timeout(20):
            await told.acquire()
            await told.acquire()
            while registry.says.qsize() or len(registry.asked) < 6:
                await asyncio.sleep(0.005)
        following.cancel()
    assert registry.asked == ["", "v1", "v1", "v1", "v1", "v2"]
    assert [line["event"] for line in lines] == ["keys.taken", "keys.not_followed", "keys.taken"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = RegistryKeys(path, lambda: None)
    again.load()
    assert [key.name for key in again.beside(())] == ["b"]
    path.write_bytes(b'{"version": ')
    with structlog.testing.capture_logs() as lines:
        RegistryKeys(path, lambda: None).load()
    assert [line["event"] for line in lines] == ["keys.not_loaded"]


def ring_of(records: list[KeyRecord], own: tuple[Key, ...] = (), now: datetime = NOW) -> KeyRing:
    keys = RegistryKeys(Path("none"), lambda: None)
    keys._told = RouterKeys(version="v", keys=records)
    return KeyRing(keys.beside(own), wall=now.timestamp)


def test_the_files_keys_win_by_name_and_by_secret() -> None:
    own = (Key("a", digest("mine")), Key("b", digest("both").upper()))
    ring = ring_of([record("a", "theirs"), record("c", "both"), record("d", "s")], own)
    assert ring.find(b"Bearer theirs") is None
    both, other = ring.find(b"Bearer both"), ring.find(b"Bearer s")
    assert both is not None
    assert other is not None
    assert (both.name, other.name) == ("b", "d")


def test_a_rotated_key_is_known_by_both_secrets_until_its_grace_ends() -> None:
    hour = NOW + timedelta(hours=1)
    rotated = record("a", "new", old_sha256=digest("old"), old_secret_until=hour, requests_per_minute=5)
    during, after = ring_of([rotated]), ring_of([rotated], now=hour)
    old, new = during.find(b"Bearer old"), during.find(b"Bearer new")
    assert old is not None
    assert new is not None
    assert (old.name, old.requests_per_minute) == (new.name, new.requests_per_minute) == ("a", 5)
    assert after.find(b"Bearer old") is None
    assert after.find(b"Bearer new") is not None


def test_a_key_ends_when_it_expires_though_it_was_seen_before() -> None:
    now = NOW.timestamp()
    ring = KeyRing((Key("a", digest("s"), expires_at=NOW + timedelta(seconds=1)),), wall=lambda: now)
    assert ring.find(b"Bearer s") is not None
    now += 1
    assert ring.find(b"Bearer s") is None
    now -= 10  # the clock was set back
    assert ring.find(b"Bearer s") is not None


def test_a_disabled_key_lets_nobody_in_and_patterns_cover_models() -> None:
    ring = ring_of([record("a", "s", models=("qwen-*", "llama")), record("off", "o", enabled=False)])
    assert ring.find(b"Bearer o") is None
    key = ring.find(b"Bearer s")
    assert key is not None
    assert [ring.covers(key, model) for model in ("qwen-7b", "llama", "llama-2", None)] == [True, True, False, False]
    assert ring.covers(Key("all", ""), None)


async def test_a_router_that_wants_keys_and_has_none_lets_nobody_in(plane: Plane) -> None:
    async def answer(call: Any) -> None:
        await call.send(plain(b"{}"))

    plane.route(await plane.add(answer))
    assert (await plane.post(CHAT)).status == 200
    plane.engine.set_keys((), required=True)
    assert (await plane.post(CHAT, headers="authorization: Bearer x\r\n")).status == 401


def test_keys_of_a_registry_need_one() -> None:
    settings = RouterSettings(registry_url=(), registry_keys=True)
    with pytest.raises(ConfigurationError, match="registry_keys needs a registry"):
        make_client(cast("Any", SimpleNamespace(settings=settings)), cast("Any", None), None, {})
    assert settings.wants_keys
    assert not RouterSettings().wants_keys
