"""Routers are known by their watches: believed when they may register, for as long as they watch."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.registry.conftest import Client, FakeClock, StartClient, parts, until

TOKENS = {"read": "r" * 40, "register": "g" * 40}


@contextlib.asynccontextmanager
async def watch(client: Client, router: str, url: str, token: str | None = None) -> AsyncIterator[Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with client.get("/v1/watch", params={"router": router, "router_url": url}, headers=headers) as answer:
        assert answer.status == 200
        assert await answer.content.readline()
        yield answer


def known(client: Client) -> list[tuple[str, str]]:
    return [(peer.name, peer.url) for peer in parts(client).routers]


async def test_a_router_is_known_while_it_watches_and_a_little_longer(client: Client, clock: FakeClock) -> None:
    async with watch(client, "router-a", "http://127.0.0.1:8000"):
        clock.advance(3600)
        assert known(client) == [("router-a", "http://127.0.0.1:8000")]
        async with client.get("/ui/routers") as answer:
            assert await answer.json() == {"routers": [{"name": "router-a", "url": "http://127.0.0.1:8000"}]}
        targets = await (await client.get("/sd/prometheus")).json()
        assert [group["labels"]["job"] for group in targets] == ["registry", "router"]
    await client.post("/services", json={})  # whatever comes next: the watch's end is noticed when it is written to
    parts(client).hub.close()
    await until(lambda: len(parts(client).hub) == 0)
    assert len(known(client)) == 1
    clock.advance(21)
    assert known(client) == []


async def test_an_address_that_may_not_be_registered_is_not_believed_C16(client: Client) -> None:
    for url in ("http://169.254.169.254", "http://8.8.8.8:8000", "file:///etc/passwd", "http://a:b@127.0.0.1:8000"):
        async with watch(client, "router-a", url):
            assert known(client) == []
    async with watch(client, "<img src=x>", "http://127.0.0.1:8000"):
        assert known(client) == []


async def test_with_tokens_only_who_may_register_is_believed(start_registry: StartClient, tmp_path: Path) -> None:
    for name, token in TOKENS.items():
        (tmp_path / name).write_text(token)
        (tmp_path / name).chmod(0o600)
    client = await start_registry(
        read_token_file=(str(tmp_path / "read"),), register_token_file=(f"router-={tmp_path / 'register'}",)
    )
    async with watch(client, "router-a", "http://127.0.0.1:8000", TOKENS["read"]):
        assert known(client) == []
    async with watch(client, "other", "http://127.0.0.1:8000", TOKENS["register"]):
        assert known(client) == []
    async with watch(client, "router-a", "http://127.0.0.1:8000", TOKENS["register"]):
        assert known(client) == [("router-a", "http://127.0.0.1:8000")]
