"""What a look at a server tells the machine."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from babysitter import events as ev
from babysitter.machine import State
from babysitter.probe import NotListening, NotReady
from babysitter.watcher import Watcher


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NotReady("/health: status 503"), [ev.PortFound(), ev.ProbeBad("/health: status 503")]),
        (NotListening("refused"), [ev.ProbeBad("refused")]),
    ],
)
async def test_server_that_answers_badly_listens_and_one_that_refuses_does_not(
    error: NotReady, told: list[ev.Event]
) -> None:
    class Prober:
        async def look(self, _url: str) -> None:
            raise error

    heard: list[ev.Event] = []
    watcher = Watcher(
        cast("Any", SimpleNamespace(addresses=SimpleNamespace(port=1, local="127.0.0.1"))),
        cast("Any", Prober()),
        cast("Any", None),
        cast("Any", None),
        state=lambda: State.WAITING_FOR_READY,
        attempt=lambda: None,
        busy=lambda: None,
        tell=heard.append,
        models_seen=lambda _models: None,
    )
    await watcher._look()
    assert heard == told
