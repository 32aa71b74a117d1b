"""What routers get nothing from is heard by its babysitter, and forgotten when it is not said again."""

from typing import Any

import pytest

from common.wire.record import Doubt
from registry.fleet.doubts import KEPT_S, MOST_ROUTERS, Doubts
from tests.registry.conftest import Client, FakeClock, StartClient, ours
from tests.registry.test_api import send

FAILING = "/v1/routers/router-1/failing"


def test_complaint_is_kept_while_it_is_repeated_W26() -> None:
    clock = FakeClock()
    failing = Doubts(clock)
    failing.note("r1", {"a": "no answer"})
    assert failing.doubt("a") == Doubt(router="r1", reason="no answer")
    assert failing.doubt("b") is None
    clock.advance(KEPT_S - 1)
    failing.note("r2", {"a": "reset"})
    clock.advance(2)
    assert failing.doubt("a") == Doubt(router="r2", reason="reset")
    failing.note("r2", {})
    assert failing.doubt("a") is None


def test_routers_that_complain_are_bounded_W26() -> None:
    failing = Doubts(FakeClock())
    for number in range(MOST_ROUTERS + 1):
        failing.note(f"r{number}", {f"s{number}": "x"})
    assert failing.doubt(f"s{MOST_ROUTERS - 1}") is not None
    assert failing.doubt(f"s{MOST_ROUTERS}") is None


async def test_heartbeats_answer_tells_of_a_complaint_W26(start_registry: StartClient) -> None:
    client: Client = await start_registry()
    await send(client, "POST", "/services", ours("a"))
    status, _ = await send(client, "POST", FAILING, {"failing": {"a": "several answers in a row failed"}})
    assert status == 200
    _, told = await send(client, "POST", "/services/a/heartbeat", {"status": "running"})
    assert told["doubt"] == {"router": "router-1", "reason": "several answers in a row failed"}
    await send(client, "POST", FAILING, {"failing": {}})
    _, told = await send(client, "POST", "/services/a/heartbeat", {"status": "running"})
    assert told.keys() == {"message", "timestamp"}


@pytest.mark.parametrize(
    "body",
    [{}, {"failing": []}, {"failing": {"../x": "y"}}, {"failing": {"a": 1}}, {"failing": {"a": "x" * 301}}],
)
async def test_complaint_of_another_form_is_refused_W26(start_registry: StartClient, body: Any) -> None:
    client: Client = await start_registry()
    status, told = await send(client, "POST", FAILING, body)
    assert (status, told["field"]) == (400, "failing")
