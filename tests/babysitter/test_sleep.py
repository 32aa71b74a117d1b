"""A server that sleeps when nobody needs it: real babysitters over the mock, which fails any request while it sleeps."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.babysitter.real import Node, ask, running, until

RULES = {"sleep": "POST /sleep?level=1", "wake": "POST /wake_up", "state": "GET /is_sleeping"}
QUESTION = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Ready, and left alive by a babysitter that is told to end."""
    top = {"sleep": RULES, "on_exit": "detach"}
    with running(tmp_path, top=top) as made:
        made.start()
        made.ready()
        yield made


def call(node: Node, verb: str) -> dict[str, Any]:
    return ask(f"http://127.0.0.1:{node.port + 1}/{verb}", {}) or {}


def own_state(node: Node) -> str:
    """The babysitter's own word."""
    return str((ask(f"http://127.0.0.1:{node.port + 1}/timeline") or {}).get("state"))


def reached(node: Node, state: str) -> None:
    until(state, lambda: own_state(node) == state)


def mock(node: Node) -> dict[str, Any]:
    return dict(node.server("/mock/state") or {})


def answers(node: Node) -> bool:
    return "choices" in (node.server("/v1/chat/completions", QUESTION) or {})


def moves(node: Node) -> list[str]:
    return [move["to"] for move in ask(f"http://127.0.0.1:{node.port + 1}/timeline")["transitions"]]


def asleep(node: Node) -> None:
    assert call(node, "sleep")["status"] == "dozing"
    reached(node, "asleep")
    assert mock(node)["asleep"] is True


def adopted(node: Node, state: str) -> None:
    """Kill the babysitter once its disk has this state, and start another."""
    until(f"{state} on disk", lambda: node.state()["memory"]["state"] == state)
    node.babysitters[-1].kill()
    node.babysitters[-1].wait()
    node.start()


def test_server_sleeps_and_wakes_by_calls(node: Node) -> None:
    pid = node.ready()
    asleep(node)
    report = node.report()
    assert (report["status"], report["display_status"], report["endpoint"]) == ("asleep", "Pending", "NA")
    assert report["replica_pid"] == pid
    assert call(node, "sleep")["status"] == "dozing", "to say it twice changes nothing"
    assert call(node, "wake")["status"] == "waking"
    assert node.ready() == pid
    assert answers(node)
    assert "asleep" not in mock(node)["calls"], "nobody asked its engine for anything while it slept"
    (stage,) = node.report()["stages"]
    assert (stage["name"], stage["state"]) == ("waking", "done")
    assert moves(node)[-4:] == ["dozing", "asleep", "waiting_for_ready", "ready"]


def test_request_under_way_is_finished_before_the_server_sleeps(node: Node) -> None:
    node.server("/mock/knobs", {"hold": True})
    got: list[Any] = []
    asking = threading.Thread(
        target=lambda: got.append(ask(f"http://127.0.0.1:{node.port}/v1/chat/completions", QUESTION, 30))
    )
    asking.start()
    node.server("/mock/state?wait_s=10&held=1")
    call(node, "sleep")
    reached(node, "dozing")
    assert node.report()["status"] == "asleep"
    time.sleep(2)
    assert (own_state(node), mock(node)["asleep"]) == ("dozing", False)
    node.server("/mock/release", {})
    asking.join()
    assert "choices" in got[0]
    reached(node, "asleep")


def test_server_that_is_used_for_longer_than_the_drain_stays_awake(tmp_path: Path) -> None:
    with running(tmp_path, top={"sleep": RULES}) as node:
        node.start()
        node.ready()
        node.server("/mock/knobs", {"hold": True})
        url = f"http://127.0.0.1:{node.port}/v1/chat/completions"
        asking = threading.Thread(target=lambda: ask(url, QUESTION, 30))
        asking.start()
        node.server("/mock/state?wait_s=10&held=1")
        call(node, "sleep")
        until(
            "it stays awake",
            lambda: "in use for longer than 8 s" in str(ask(f"http://127.0.0.1:{node.port + 1}/timeline")),
        )
        assert not mock(node)["asleep"]
        node.server("/mock/knobs", {"hold": False})
        node.server("/mock/release", {})
        asking.join()
        node.ready()


def test_wake_that_comes_before_it_sleeps_keeps_it_awake(node: Node) -> None:
    call(node, "sleep")
    reached(node, "dozing")
    call(node, "wake")
    node.ready()
    assert "/sleep" not in mock(node)["calls"]
    assert answers(node)


@pytest.mark.parametrize("rules", [{**RULES, "sleep": "PUT /sleep"}, {**RULES, "sleep": "POST /elsewhere"}])
def test_server_that_does_not_sleep_serves_again_and_is_not_told_again(tmp_path: Path, rules: dict[str, str]) -> None:
    with running(tmp_path, top={"sleep": rules}) as node:
        node.start()
        pid = node.ready()
        assert call(node, "sleep")["status"] == "dozing"
        until("engine.not_asleep", lambda: "engine.not_asleep" in node.log())
        assert node.ready() == pid
        assert answers(node)
        refusal = call(node, "sleep")
        assert refusal["code"] == "cannot_sleep"
        assert "did not sleep" in refusal["error"]


def test_only_a_server_that_can_is_put_to_sleep_and_only_one_that_sleeps_is_woken(tmp_path: Path, node: Node) -> None:
    assert "only a replica that sleeps" in call(node, "wake")["error"]
    (tmp_path / "other").mkdir()
    with running(tmp_path / "other") as plain:
        plain.start()
        plain.ready()
        assert call(plain, "sleep")["code"] == "cannot_sleep"


def test_slow_wake_is_waited_for_without_a_request(node: Node) -> None:
    asleep(node)
    node.server("/mock/knobs", {"wake_s": 2})
    call(node, "wake")
    until("being woken", lambda: "being woken" in str(node.report().get("error_message")))
    assert node.report()["stages"][0]["state"] == "running"
    node.ready()
    assert "asleep" not in mock(node)["calls"]
    assert node.report()["stages"][0]["took_s"] >= 2


def test_wake_is_repeated_until_it_takes(tmp_path: Path) -> None:
    with running(tmp_path, top={"sleep": {**RULES, "wake": "PUT /wake_up"}, "on_exit": "detach"}) as node:
        node.start()
        pid = node.ready()
        asleep(node)
        call(node, "wake")
        until("engine.not_woken", lambda: "engine.not_woken" in node.log())
        assert own_state(node) == "waiting_for_ready"
        node.server("/wake_up", {})
        assert node.ready() == pid
        assert "asleep" not in mock(node)["calls"]


def test_babysitter_killed_while_its_server_sleeps_leaves_it_asleep(node: Node) -> None:
    pid = node.ready()
    asleep(node)
    adopted(node, "asleep")
    reached(node, "asleep")
    assert mock(node)["asleep"] is True
    assert mock(node)["calls"].get("/sleep") == 1, "it is asked first"
    call(node, "wake")
    assert node.ready() == pid
    assert "asleep" not in mock(node)["calls"]


def test_babysitter_killed_while_its_server_dozes_has_it_sleep(node: Node) -> None:
    pid = node.ready()
    call(node, "sleep")
    reached(node, "dozing")
    adopted(node, "dozing")
    reached(node, "asleep")
    call(node, "wake")
    assert node.ready() == pid


def test_babysitter_killed_while_its_server_wakes_believes_nothing_before_it_has(node: Node) -> None:
    pid = node.ready()
    asleep(node)
    node.server("/mock/knobs", {"wake_s": 3})
    call(node, "wake")
    until("/wake_up", lambda: mock(node)["calls"].get("/wake_up"))
    adopted(node, "waiting_for_ready")
    assert node.ready() == pid
    assert mock(node)["asleep"] is False
    assert "asleep" not in mock(node)["calls"]
    assert answers(node)


def test_babysitter_killed_while_its_server_serves_asks_it_for_nothing(node: Node) -> None:
    node.server("/mock/knobs", {"hold": True})  # it could prove nothing now
    adopted(node, "ready")
    node.ready()


def test_settings_without_sleep_leave_a_sleeper_its_way_back(node: Node) -> None:
    pid = node.ready()
    asleep(node)
    node.top = {"on_exit": "detach"}
    assert node.config.exists()
    os.kill(node.babysitters[-1].pid, signal.SIGHUP)
    until("config.reloaded", lambda: "reloaded" in node.log())
    call(node, "wake")
    assert node.ready() == pid


@pytest.mark.parametrize("state", ["asleep", "dozing"])
def test_server_that_dies_in_its_sleep_is_started_again(node: Node, state: str) -> None:
    pid = node.ready()
    call(node, "sleep")
    reached(node, state)
    os.kill(pid, signal.SIGKILL)
    until("another server", lambda: node.report().get("replica_pid") not in (pid, None))
    assert node.ready() != pid
    assert mock(node)["asleep"] is False


@pytest.mark.parametrize("state", ["asleep", "dozing"])
def test_server_is_stopped_in_its_sleep(node: Node, state: str) -> None:
    call(node, "sleep")
    reached(node, state)
    call(node, "stop")
    assert node.babysitters[-1].wait(30) == 0
    assert node.state()["status"] == "stopped"
    assert node.processes() == []
