"""`GET /v1/usage`: a client sees what its own key used, and nobody else's."""

from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest
from aiohttp import web

from common.discovery.registry_client import RegistrationRefused, RegistryClient, RegistryUnavailable, UnknownService
from common.http.errors import ApiError
from common.wire.usage import UsageCounts, UsageReport
from router.control.own_usage import KEPT_MOST, OwnUsage
from router.keys import Key
from router.proxy.paths import KEY_FIELD, SEES_FIELD
from tests.router.conftest import MakePlane
from tests.router.test_ledger import HASH

REPORT = UsageReport(since="", until="", rows=[], total=UsageCounts(requests=3))


def asker(**how: Any) -> tuple[OwnUsage, AsyncMock]:
    asked = AsyncMock(**{"return_value": REPORT, **how})
    clock = iter(range(0, 100_000, 2))
    client = cast("RegistryClient", type("Client", (), {"usage": asked})())
    return OwnUsage(client, lambda: float(next(clock))), asked


async def test_the_registry_is_asked_for_the_callers_key_and_not_at_each_call() -> None:
    usage, asked = asker()
    for _ in range(3):  # two seconds after each other
        assert await usage.report("team", {"step": "day", "key": "another", "by": "key"}) is REPORT
    asked.assert_awaited_once_with({"by": "model", "key": "team", "step": "day"})
    await usage.report("team", {"step": "day"})
    await usage.report("", {})
    assert [call.args[0]["key"] for call in asked.await_args_list] == ["team", "team", ""]


async def test_answers_that_are_kept_are_bounded() -> None:
    usage, _ = asker()
    for number in range(KEPT_MOST + 1):
        await usage.report("team", {"since": str(number)})
    assert len(usage._kept) == 1


@pytest.mark.parametrize("query", [{"since": "x"}, {"until": "-1"}, {"step": "week"}])
async def test_what_cannot_be_asked_is_named_and_asks_nobody(query: dict[str, str]) -> None:
    usage, asked = asker()
    with pytest.raises(ApiError) as refused:
        await usage.report("team", query)
    assert (refused.value.status, refused.value.fields["field"]) == (400, next(iter(query)))
    asked.assert_not_awaited()


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (UnknownService("x"), 404),
        (RegistryUnavailable("http://secret"), 503),
        (RegistrationRefused("http://secret"), 503),
    ],
)
async def test_a_registry_that_does_not_tell_is_said_without_where_it_is(fault: Exception, status: int) -> None:
    usage, _ = asker(side_effect=fault)
    with pytest.raises(ApiError) as refused:
        await usage.report("team", {})
    assert refused.value.status == status
    assert "secret" not in refused.value.message


async def test_without_a_registry_nobody_keeps_a_ledger() -> None:
    with pytest.raises(ApiError) as refused:
        await OwnUsage(None).report("", {})
    assert refused.value.status == 404


async def test_a_worker_says_whose_key_it_was_whatever_the_client_says(planes: MakePlane, tmp_path: Path) -> None:
    said: list[str] = []
    sees: list[str | None] = []

    async def hear(request: web.Request) -> web.Response:
        said.extend(request.headers.getall(KEY_FIELD.decode())[-1:])
        sees.append(request.headers.get(SEES_FIELD.decode()))
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/v1/usage", hear)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "control.sock")).start()
    plane = await planes(extra_headers=("x-svc-key",))
    ask = "GET /v1/usage HTTP/1.1\r\nhost: r\r\nx-svc-key: boss\r\n{}\r\n"
    assert (await plane.send(ask.format("").encode())).status == 200
    plane.engine.set_keys((Key("team/ä\r\n", HASH),))
    assert (await plane.send(ask.format("").encode())).status == 401
    assert (await plane.send(ask.format("authorization: Bearer secret\r\n").encode())).status == 200
    plane.engine.set_keys((Key("boss", HASH, admin=True),))
    assert (await plane.send(ask.format("authorization: Bearer secret\r\n").encode())).status == 200
    assert said == ["", "team%2F%C3%A4%0D%0A", "boss"]
    assert sees == [None, "own", None]
    await runner.cleanup()
