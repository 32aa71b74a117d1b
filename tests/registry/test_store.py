"""The contract of `registry.store.Store`, over every store; and what is SQLite's own."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from common.exits import ConfigurationError
from common.wire.words import HealthStatus
from registry.choose_store import make_store
from registry.core.model import Instance, Removed, Upsert
from registry.core.report import make_report
from registry.core.store import Store, StoreError, StoreUnavailable
from registry.settings import RegistrySettings
from registry.store.etcd import EtcdStore
from registry.store.memory import MemoryStore
from registry.store.sqlite import SqliteStore
from tests.registry.records import registration

Reopen = Callable[[], Store]


def instance(name: str, **changes: Any) -> Instance:
    said = registration(name, metadata={"models": ["é"]}, instance_id="i")
    return replace(Instance(said, generation=3), **changes)


@pytest.fixture(params=["memory", "sqlite", "etcd"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    """Makes a store over what the one before remembered."""
    match request.param:
        case "memory":
            kept = MemoryStore()
            return lambda: kept
        case "sqlite":
            return lambda: SqliteStore(tmp_path / "deep" / "registry.sqlite3")
        case _:
            endpoint = request.getfixturevalue("etcd").endpoint
            return lambda: EtcdStore([f"http://{endpoint}"])


async def written(reopen: Reopen, *changes: Upsert | Removed) -> tuple[Instance, ...]:
    """Write each change by itself, close, and read all back."""
    store = reopen()
    await store.open()
    for change in changes:
        await store.write([change])
    await store.close()
    again = reopen()
    loaded = await again.open()
    await again.close()
    return tuple(sorted(loaded.instances, key=lambda found: found.name))


async def test_new_store_is_empty(reopen: Reopen) -> None:
    assert await written(reopen) == ()


async def test_put_is_there_after_reopening(reopen: Reopen) -> None:
    a, b = instance("a"), instance("b", draining=True, report=make_report({"replica_id": "r"}))
    assert await written(reopen, Upsert(a, durable=True), Upsert(b, durable=True)) == (a, b)


async def test_put_replaces_and_removal_removes(reopen: Reopen) -> None:
    old, new, other = instance("a"), instance("a", generation=4), instance("b")
    changes = (Upsert(old, durable=True), Upsert(new, durable=True), Upsert(other, durable=True))
    removals = (Removed(other, "deregistered"), Removed(other, "deregistered"))
    assert await written(reopen, *changes, *removals) == (new,)


async def test_generation_floor_outlives_the_record(reopen: Reopen) -> None:
    store = reopen()
    await store.open()
    (put,) = await store.write([Upsert(instance("a", generation=2), durable=True, claims=True)])
    assert isinstance(put, Upsert)
    await store.write([Removed(put.instance, "deregistered")])
    await store.write([Removed(instance("b", generation=1), "deregistered")])
    await store.close()
    again = reopen()
    assert (await again.open()).generation_floor >= put.instance.generation
    await again.close()


async def test_sqlite_forgets_health_staleness_and_load(tmp_path: Path) -> None:
    def make() -> Store:
        return SqliteStore(tmp_path / "r.sqlite3")

    report = {"replica_id": "r", "running": 7, "waiting": 1, "updated_at": "x"}
    marked = instance("a", health=HealthStatus.HEALTHY, stale=True, suspect=True, report=make_report(report))
    assert await written(make, Upsert(marked, durable=True)) == (
        instance("a", report=make_report({"replica_id": "r"})),
    )


async def test_sqlite_is_private(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "r.sqlite3")
    await store.open()
    assert (tmp_path / "r.sqlite3").stat().st_mode & 0o077 == 0
    await store.close()


async def test_sqlite_in_use_by_another_registry_is_a_configuration_error(tmp_path: Path) -> None:
    first = SqliteStore(tmp_path / "r.sqlite3")
    await first.open()
    second = SqliteStore(tmp_path / "r.sqlite3")
    with pytest.raises(ConfigurationError, match="another registry uses it"):
        await second.open()
    await second.close()
    await first.close()
    third = SqliteStore(tmp_path / "r.sqlite3")
    await third.open()
    await third.close()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
async def test_sqlite_damaged_file_is_set_aside_and_a_new_one_begun_C12(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "r.sqlite3"
    store = SqliteStore(path)
    await store.open()
    await store.write([Upsert(instance(f"a{number}"), durable=True) for number in range(200)])
    await store.close()
    size = path.stat().st_size
    if damage == "garbage":
        path.write_bytes(b"\x00garbage" * 1000)
    else:
        os.truncate(path, 0 if damage == "empty" else size - size // 3)
    again = SqliteStore(path)
    loaded = await again.open()
    await again.write([Upsert(instance("b"), durable=True)])
    await again.close()
    assert loaded.instances == ()
    assert bool(list(tmp_path.glob("*.corrupt-*"))) == (damage != "empty")


async def test_sqlite_unreadable_row_costs_only_itself_C12(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite3"
    store = SqliteStore(path)
    await store.open()
    await store.write([Upsert(instance("a"), durable=True), Upsert(instance("b"), durable=True)])
    await store.close()
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE instances SET record = '{' WHERE name = 'a'")
    database.close()
    again = SqliteStore(path)
    assert [found.name for found in (await again.open()).instances] == ["b"]
    await again.close()


async def test_sqlite_write_after_close_is_unavailable(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "r.sqlite3")
    await store.open()
    store._close()
    with pytest.raises(StoreUnavailable):
        await store.write([Upsert(instance("a"), durable=True)])
    await store.close()


async def test_sqlite_write_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite3"
    store = SqliteStore(path)
    await store.open()
    breaking = sqlite3.connect(path)
    with breaking:
        breaking.execute(
            "CREATE TRIGGER no_b BEFORE INSERT ON instances WHEN NEW.name = 'b' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    breaking.close()
    with pytest.raises(StoreError):
        await store.write([Upsert(instance("a"), durable=True), Upsert(instance("b"), durable=True)])
    await store.close()
    again = SqliteStore(path)
    assert (await again.open()).instances == ()
    await again.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (None, "base/registry.sqlite3"),
        ("sqlite:///x/y.db", "x/y.db"),
        ("sqlite:////x/y.db", "/x/y.db"),
        ("memory://", None),
    ],
)
def test_store_setting_chooses_the_store(url: str | None, expected: str | None) -> None:
    store = make_store(RegistrySettings(store=url, data_dir=Path("base")))
    if expected is None:
        assert isinstance(store, MemoryStore)
    else:
        assert isinstance(store, SqliteStore)
        assert store._path == Path(expected)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite",
        "sqlite://",
        "sqlite:///",
        "memory://x",
        "redis://h",
        "/x/y",
        "etcd://",
        "etcd://h:x",
        "etcd://h:1,",
    ],
)
def test_store_setting_of_no_known_form_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="--store"):
        make_store(RegistrySettings(store=url, data_dir=Path("base")))
