"""An etcd as people run it: TLS with client certificates, users and passwords. Real, and really guarded."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
import trustme

from common.exits import ConfigurationError
from registry.choose_store import make_store
from registry.core.model import Instance, Upsert
from registry.core.store import Away, Back, Store, StoreUnavailable, Written
from registry.settings import RegistrySettings
from registry.store.etcd import EtcdStore
from tests.ports import free_port
from tests.registry.etcd import Certificates, Etcd, require_etcd
from tests.registry.records import registration

PASSWORD = "correct horse"
ROOT = ("--user", "root:root-password")


def record(name: str) -> Upsert:
    registered = registration(name, instance_id="a", incarnation=1, ttl_s=60.0)
    return Upsert(Instance(registered, generation=1), durable=True, claims=True)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates.make(tmp_path / "tls")


@pytest.fixture
def guarded(tmp_path: Path, certificates: Certificates) -> Iterator[Etcd]:
    """etcd with TLS and authentication on, and one user who may do what a registry does."""
    require_etcd()
    server = Etcd(tmp_path / "etcd", client_port=free_port(), peer_port=free_port(), tls=certificates)
    server.start()
    try:
        server.ctl("user", "add", "root:root-password")
        server.ctl("user", "grant-role", "root", "root")
        server.ctl("role", "add", "registry")
        server.ctl("role", "grant-permission", "registry", "--prefix=true", "readwrite", "/inference-svc/")
        server.ctl("user", "add", f"svc:{PASSWORD}")
        server.ctl("user", "grant-role", "svc", "registry")
        server.ctl("auth", "enable")
        yield server
    finally:
        server.kill()


@pytest.fixture
def settings(tmp_path: Path, guarded: Etcd, certificates: Certificates) -> RegistrySettings:
    password = tmp_path / "password"
    password.write_text(f"{PASSWORD}\n")
    password.chmod(0o600)
    return RegistrySettings(
        store=f"etcds://{guarded.endpoint}",
        etcd_ca_file=certificates.ca,
        etcd_cert_file=certificates.client,
        etcd_key_file=certificates.client_key,
        etcd_user="svc",
        etcd_password_file=password,
    )


async def opened(settings: RegistrySettings) -> Store:
    store = make_store(settings)
    await store.open()
    return store


async def renewed(store: Store, name: str) -> None:
    """Renew a lease, and wait until etcd has."""
    assert isinstance(store, EtcdStore)
    before = store.renewed
    assert store.renew(name)
    async with asyncio.timeout(10):
        while store.renewed == before:
            await asyncio.sleep(0.05)


async def test_records_are_written_renewed_read_and_watched_as_a_user_over_tls(settings: RegistrySettings) -> None:
    one, other = await opened(settings), await opened(settings)
    try:
        async with aclosing(other.events()) as events:
            first = asyncio.ensure_future(anext(events))
            await one.write([record("svc")])
            await renewed(one, "svc")
            event = await asyncio.wait_for(first, 10)
            assert isinstance(event, Written)
            assert event.instance.name == "svc"
    finally:
        await one.close()
        await other.close()


async def test_a_token_that_ended_is_asked_for_again_and_nothing_is_lost(
    settings: RegistrySettings, guarded: Etcd
) -> None:
    store = await opened(settings)
    try:
        await store.write([record("before")])
        guarded.kill()  # etcd keeps its tokens in memory
        guarded.start()
        await store.write([record("after")])
        await renewed(store, "before")
    finally:
        await store.close()


async def test_a_watch_whose_token_ended_comes_back_with_a_snapshot(settings: RegistrySettings, guarded: Etcd) -> None:
    store = await opened(settings)
    try:
        await store.write([record("svc")])
        async with aclosing(store.events()) as events:
            assert isinstance(await asyncio.wait_for(anext(events), 10), Written)  # our own write
            upcoming = asyncio.ensure_future(anext(events))
            guarded.kill()
            guarded.start()
            assert isinstance(await asyncio.wait_for(upcoming, 20), Away)
            back = await asyncio.wait_for(anext(events), 20)
            assert isinstance(back, Back)
            assert set(back.instances) == {"svc"}
    finally:
        await store.close()


async def test_a_wrong_password_ends_the_start_at_once_and_says_whose(
    settings: RegistrySettings, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("battery staple\n")
    wrong.chmod(0o600)
    store = make_store(settings.model_copy(update={"etcd_password_file": wrong}))
    with pytest.raises(ConfigurationError, match="does not take user 'svc'") as caught:
        await asyncio.wait_for(store.open(), 5)
    assert "battery" not in str(caught.value)
    await store.close()


async def test_no_user_where_one_is_wanted_is_told_with_its_remedy(settings: RegistrySettings) -> None:
    store = make_store(settings.model_copy(update={"etcd_user": None, "etcd_password_file": None}))
    with pytest.raises(ConfigurationError, match="set etcd_user and etcd_password_file"):
        await asyncio.wait_for(store.open(), 5)
    await store.close()


async def test_a_user_who_loses_the_right_is_refused_as_unavailable(settings: RegistrySettings, guarded: Etcd) -> None:
    store = await opened(settings)
    try:
        guarded.ctl(*ROOT, "user", "revoke-role", "svc", "registry")
        with pytest.raises(StoreUnavailable, match="permission denied"):
            await store.write([record("svc")])
        guarded.ctl(*ROOT, "user", "grant-role", "svc", "registry")
        await store.write([record("svc")])
    finally:
        await store.close()


async def test_a_user_for_an_etcd_without_authentication_does_no_harm(
    settings: RegistrySettings, guarded: Etcd
) -> None:
    guarded.ctl(*ROOT, "auth", "disable")
    store = await opened(settings)
    try:
        await store.write([record("svc")])
    finally:
        await store.close()


async def test_an_etcd_of_another_ca_is_not_believed(
    settings: RegistrySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.store.etcd.OPEN_WITHIN_S", 0.1)
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    store = make_store(settings.model_copy(update={"etcd_ca_file": other}))
    with pytest.raises(ConfigurationError, match="CERTIFICATE_VERIFY_FAILED"):
        await store.open()
    await store.close()


async def test_an_etcd_that_wants_a_certificate_gets_none_and_the_start_says_so(
    settings: RegistrySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.store.etcd.OPEN_WITHIN_S", 0.1)
    store = make_store(settings.model_copy(update={"etcd_cert_file": None, "etcd_key_file": None}))
    with pytest.raises(ConfigurationError, match="store at https://"):
        await store.open()
    await store.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"etcd_key_file": None}, "need each other"),
        ({"etcd_password_file": None}, "need each other"),
        ({"store": "etcd://127.0.0.1:2379"}, "etcds://"),
        ({"etcd_ca_file": Path("/does/not/exist")}, "/does/not/exist"),
        ({"etcd_cert_file": Path("/does/not/exist")}, "/does/not/exist"),
        ({"store": "etcds://host"}, None),
        ({"store": "etcds://[::1]:2379,host:1"}, None),
    ],
)
def test_settings_of_a_guarded_etcd_are_checked_before_it_is_asked(
    settings: RegistrySettings, changes: dict[str, object], message: str | None
) -> None:
    changed = settings.model_copy(update=changes)
    if message is None:
        make_store(changed)
        return
    with pytest.raises(ConfigurationError, match=message):
        make_store(changed)


def test_a_password_that_others_can_read_is_refused(settings: RegistrySettings) -> None:
    assert settings.etcd_password_file is not None
    settings.etcd_password_file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        make_store(settings)
