"""The contract of `registry.core.documents`, over every store; and leadership over a real etcd."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from registry.core.documents import Document, Fence
from registry.core.store import DocumentConflict, FenceLost, Store, StoreUnavailable
from registry.store.etcd import EtcdStore
from registry.store.sqlite import SqliteStore
from tests.registry.etcd import Etcd
from tests.registry.processes import ROOT, environment


@asynccontextmanager
async def opened(etcd: Etcd) -> AsyncIterator[EtcdStore]:
    store = EtcdStore([f"http://{etcd.endpoint}"])
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def test_what_is_written_is_read_by_prefix(store: Store) -> None:
    documents = store.documents
    first = await documents.write("deployments/a", b"1", version=0)
    await documents.write("deployments/b", b"", version=0)
    await documents.write("starts/a", b"2", version=0)
    found = await documents.read("deployments/")
    assert found["deployments/a"] == Document(b"1", first)
    assert sorted(found) == ["deployments/a", "deployments/b"]
    assert found["deployments/b"].value == b""
    assert len(await documents.read("")) == 3


async def test_a_write_of_another_version_changes_nothing(store: Store) -> None:
    documents = store.documents
    first = await documents.write("k", b"1", version=0)
    second = await documents.write("k", b"2", version=first)
    assert second > first
    for wrong in (0, first):
        with pytest.raises(DocumentConflict):
            await documents.write("k", b"3", version=wrong)
        with pytest.raises(DocumentConflict):
            await documents.write("k", None, version=wrong)
    assert await documents.read("k") == {"k": Document(b"2", second)}
    await documents.write("k", None, version=second)
    with pytest.raises(DocumentConflict):
        await documents.write("k", b"4", version=second)
    assert await documents.write("k", b"5", version=0) > second  # never a version that it had


async def test_of_many_writers_of_one_version_one_wins(store: Store) -> None:
    results = await asyncio.gather(
        *(store.documents.write("k", b"%d" % number, version=0) for number in range(20)), return_exceptions=True
    )
    assert sum(isinstance(it, int) for it in results) == 1
    assert sum(isinstance(it, DocumentConflict) for it in results) == 19


async def test_one_registry_leads_and_may_write(store: Store) -> None:
    fence = await store.documents.lead()
    assert fence is not None
    assert await store.documents.lead() == fence
    await store.documents.write("k", b"1", version=0, fence=fence)


async def test_sqlite_keeps_documents_of_a_registry_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite3"
    program = (
        "import asyncio, os, signal, pathlib\nfrom registry.store.sqlite import SqliteStore\n"
        f"async def main():\n    store = SqliteStore(pathlib.Path({str(path)!r}))\n    await store.open()\n"
        "    await store.documents.write('k', b'1', version=0)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    store = SqliteStore(path)
    await store.open()
    assert (await store.documents.read(""))["k"].value == b"1"
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.documents.read("")


async def test_who_leads_hands_over_when_it_ends(etcd: Etcd) -> None:
    async with opened(etcd) as other:
        async with opened(etcd) as one:
            fence = await one.documents.lead()
            assert fence is not None
            assert await other.documents.lead() is None
        after = await other.documents.lead()  # at once: it resigned
        assert after is not None
        assert after != fence


async def test_one_that_only_looks_who_leads_needs_no_lease(etcd: Etcd) -> None:
    async with opened(etcd) as one, opened(etcd) as other:
        assert await one.documents.lead() is not None
        assert await other.documents.lead() is None
        leases = subprocess.run(
            ["etcdctl", f"--endpoints={etcd.endpoint}", "lease", "list"], capture_output=True, text=True, check=True
        ).stdout
        assert leases.startswith("found 1 leases"), leases


async def test_a_leader_that_was_paused_writes_nothing_C18(etcd: Etcd) -> None:
    async with opened(etcd) as one, opened(etcd) as other:
        fence = await one.documents.lead()
        assert fence is not None
        version = await one.documents.write("k", b"1", version=0, fence=fence)
        await one.documents.say("status/k", b"of one")
        async with asyncio.timeout(12):
            while (after := await other.documents.lead()) is None:
                await asyncio.sleep(0.1)
        with pytest.raises(FenceLost):
            await one.documents.write("k", b"2", version=version, fence=fence)
        assert await one.documents.lead() is None
        assert await other.documents.read("") == {"k": Document(b"1", version)}  # what it said went with its lease
        await other.documents.write("k", b"3", version=version, fence=after)
        with pytest.raises(FenceLost):
            await other.documents.write("l", b"", version=0, fence=Fence(after.number + 1))


async def test_nobody_leads_while_etcd_is_away(etcd: Etcd) -> None:
    async with opened(etcd) as one:
        assert await one.documents.lead() is not None
        etcd.kill()
        with pytest.raises(StoreUnavailable):
            await one.documents.lead()
        with pytest.raises(StoreUnavailable):
            await one.documents.write("k", b"", version=0)
        etcd.start()
        assert await one.documents.lead() is not None
