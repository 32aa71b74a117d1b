"""What a look at a server tells the machine."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from babysitter import events as ev
from babysitter import watcher as module
from babysitter.lifecycle import ReplicaState
from babysitter.probe import NotListening, NotReady
from babysitter.watcher import ServerWatcher, start_pause_s


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
    class ServerProbe:
        async def look(self, _url: str) -> None:
            raise error

    heard: list[ev.Event] = []
    watcher = ServerWatcher(
        cast("Any", SimpleNamespace(addresses=SimpleNamespace(port=1, local="127.0.0.1"))),
        cast("Any", ServerProbe()),
        cast("Any", None),
        cast("Any", None),
        state=lambda: ReplicaState.WAITING_FOR_READY,
        attempt=lambda: None,
        busy=lambda: None,
        tell=heard.append,
        models_seen=lambda _models: None,
        adapters=cast("Any", SimpleNamespace(steps=0)),
    )
    await watcher._look()
    assert heard == told


async def test_new_server_is_not_judged_by_the_memory_of_the_last_A16(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([2 << 30, 1 << 20])
    monkeypatch.setattr(module, "memory_bytes", lambda _members: next(sizes))
    monkeypatch.setattr(module, "LOOKING_SHARE", 1e-9)  # a server so large that it is weighed once in an age
    heard: list[ev.Event] = []
    addresses = SimpleNamespace(port=1, local="127.0.0.1", port_file=None)
    watcher = ServerWatcher(
        cast("Any", SimpleNamespace(addresses=addresses, memory_hard_bytes=1 << 30)),
        cast("Any", None),
        cast("Any", None),
        cast("Any", None),
        state=lambda: ReplicaState.READY,
        attempt=lambda: cast("Any", SimpleNamespace(members=tuple)),
        busy=lambda: None,
        tell=heard.append,
        models_seen=lambda _models: None,
        adapters=cast("Any", SimpleNamespace(steps=0)),
    )
    await watcher._weigh()
    assert [type(event) for event in heard] == [ev.OverLimit]
    watcher.new_attempt()
    await watcher._weigh()
    assert [type(event) for event in heard] == [ev.OverLimit]


def test_looks_at_a_start_come_soon_at_first_and_then_as_told() -> None:
    assert [start_pause_s(taken_s, 1.0) for taken_s in (0.0, 0.4, 2.0, 4.0, 600.0)] == [0.1, 0.1, 0.5, 1.0, 1.0]
    assert start_pause_s(0.0, 0.05) == 0.05
