"""Replica commands against a fake agent: its calls, its event stream, its cuts."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from ctl.codes import Code
from ctl.commands.replicas_wait import sorry
from ctl.views.progress import ReplicaProgress
from tests.ctl.conftest import Suite, record

ID = "abc123def456"
BASE = "registry GET /api/v1/replicas"
ONE = f"{BASE}/{ID}"


def info(status: str = "ready", **members: Any) -> dict[str, Any]:
    return {
        "replica_id": ID,
        "server_mode": "replica",
        "model_name": "llama3.1-8b",
        "status": status,
        "endpoint": "http://node-1:20000" if status == "ready" else "NA",
        "compile_wsjob": ["wsjob-1"],
        "execute_wsjob": [],
        "created_at": "2026-01-01T00:00:00Z",
        "error_message": None,
        "metadata": {"node": "node-1"},
        **members,
    }


def stage(name: str, state: str, detail: str = "") -> tuple[str, dict[str, Any]]:
    return "stage", {"name": name, "state": state, "took_s": 1.0, "attempt": 1, "detail": detail}


def status(word: str, **members: Any) -> tuple[str, dict[str, Any]]:
    return "status", {"replica_id": ID, "status": word, **members}


def stream(*events: tuple[str, Mapping[str, Any]]) -> Any:
    """The agent's event stream; it ends behind the last event."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number, (name, data) in enumerate(events):
            await response.write(f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode())
        return response

    return answer


LIFE = (
    ("snapshot", info("pending", stages=[])),
    status("creating"),
    stage("venv", "done"),
    stage("install", "running", "Collecting torch"),
    stage("install", "done"),
    status("starting"),
    status("waiting_for_ready"),
    ("jobs", {"compile_wsjob": ["wsjob-1"], "execute_wsjob": []}),
    status("ready", endpoint="http://node-1:20000"),
    ("end", {"replica_id": ID, "status": "ready", "reason": "the replica is ready"}),
)


async def test_create_and_wait_prints_the_id_and_tells_each_stage(suite: Suite) -> None:
    suite.answers["registry POST /api/v1/replicas"] = (201, {"replica_id": ID, "status": "pending"})
    suite.answers[f"{ONE}/events"] = stream(*LIFE)
    done = await suite.ctl(
        "replicas", "create", "--mode", "replica_mock", "--model", "m", "--multibox", "dh1", "--wait"
    )
    assert (done.code, done.stdout) == (0, f"{ID}\n")
    told = [line.removeprefix(f"{ID}: ") for line in done.stderr.splitlines()]
    assert told == [
        "pending: wsjob-1",
        "creating: wsjob-1",
        "creating · install: Collecting torch",
        "creating: wsjob-1",
        "starting · compile: wsjob-1",
        "waiting for ready · compile: wsjob-1",
        "ready at http://node-1:20000",
    ]
    (body,) = suite.calls("registry POST /api/v1/replicas")
    assert body == {"server_mode": "replica_mock", "model_name": "m", "placement": {"multibox": "dh1"}}


async def test_create_and_wait_on_a_terminal_draws_a_bar_with_the_stages_name(suite: Suite) -> None:
    suite.answers["registry POST /api/v1/replicas"] = (201, {"replica_id": ID, "status": "pending"})
    suite.answers[f"{ONE}/events"] = stream(*LIFE)
    done = await suite.ctl("replicas", "create", "--mode", "replica", "--model", "m", "--wait", screen=True)
    assert done.code == 0
    assert "ready at" in done.stderr
    assert "━" in done.stderr


async def test_a_replica_that_fails_is_exit_1_with_its_reason(suite: Suite) -> None:
    suite.answers[f"{ONE}/events"] = stream(
        ("snapshot", info("creating")),
        status("failed", error_message="no package cerebras-pytorch==2.3\nTraceback"),
    )
    done = await suite.ctl("replicas", "wait", ID)
    assert done.code == Code.FAILED
    assert "is failed: no package cerebras-pytorch==2.3; see 'svcctl replicas logs" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_wait_survives_a_stream_that_is_cut(suite: Suite) -> None:
    turns = [stream(("snapshot", info("creating"))), stream(("snapshot", info("ready")))]

    async def cut(request: web.Request) -> web.StreamResponse:
        made: web.StreamResponse = await turns.pop(0)(request)
        return made

    suite.answers[f"{ONE}/events"] = cut
    done = await suite.ctl("replicas", "wait", ID, "--json")
    assert turns == []
    assert done.code == Code.NOT_FOUND  # the info at the end: this fake has none
    suite.answers[f"{ONE}/events"] = stream(("snapshot", info("ready")))
    suite.answers[ONE] = {"info": info("ready")}
    assert (await suite.ctl("replicas", "wait", ID, "--json")).json["status"] == "ready"


async def test_a_keeper_without_streams_is_asked_again_and_again(suite: Suite) -> None:
    left = ["starting", "starting", "ready"]

    async def one(_request: web.Request) -> web.Response:
        return web.json_response({"info": info(left.pop(0))})

    suite.answers[ONE] = one
    assert (await suite.ctl("replicas", "wait", ID)).code == 0
    assert left == []


async def test_the_end_of_the_wait_is_not_the_end_of_the_replica(suite: Suite) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f"event: snapshot\ndata: {json.dumps(info('waiting_for_ready'))}\n\n".encode())
        await asyncio.sleep(60)
        return response

    suite.answers[f"{ONE}/events"] = silent
    done = await suite.ctl("replicas", "wait", ID, "--timeout", "0.5")
    assert done.code == Code.TIME_IS_UP
    assert f"{ID} (waiting for ready · compile)" in done.stderr


async def test_waiting_for_nobody_is_not_found(suite: Suite) -> None:
    suite.answers[ONE] = (404, {"error": f"replica {ID} not found"})
    done = await suite.ctl("replicas", "wait", ID)
    assert done.code == Code.NOT_FOUND
    assert f"replica {ID} not found" in done.stderr


async def test_create_says_which_field_is_wrong(suite: Suite, tmp_path: Path) -> None:
    suite.answers["registry POST /api/v1/replicas"] = (
        422,
        {"error": "placement.multibox: must not be empty", "field": "placement.multibox"},
    )
    file = tmp_path / "request.json"
    file.write_text('{"server_mode": "replica", "model_name": "m", "placement": {"multibox": ""}}')
    done = await suite.ctl("replicas", "create", "-f", str(file))
    assert done.code == Code.REFUSED
    assert "placement.multibox: must not be empty" in done.stderr


async def test_create_shows_what_of_the_request_is_not_carried_out(suite: Suite) -> None:
    made = {
        "replica_id": ID, "status": "pending", "message": "made",
        "warnings": [{"field": "influxdb", "note": "nothing reads it"}, "not ours", {"field": "catalog_config"}],
    }  # fmt: skip
    suite.answers["registry POST /api/v1/replicas"] = (201, made)
    done = await suite.ctl("replicas", "create", "--mode", "replica_mock", "--model", "m")
    assert (done.code, done.stdout) == (0, f"{ID}\n")
    assert done.stderr.splitlines()[:2] == ["influxdb: nothing reads it", "catalog_config: "]
    told = await suite.ctl("replicas", "create", "--mode", "replica_mock", "--model", "m", "--json")
    assert told.json["warnings"] == made["warnings"]


async def test_create_of_a_template_needs_neither_a_mode_nor_a_model_name(suite: Suite, tmp_path: Path) -> None:
    suite.answers["registry POST /api/v1/replicas"] = (201, {"replica_id": ID, "status": "pending", "message": "made"})
    file = tmp_path / "request.yaml"
    file.write_text("backend: {template: mock, parameters: {model: m}}\n")
    done = await suite.ctl("replicas", "create", "-f", str(file), "--node", "node-2")
    assert (done.code, done.stdout) == (0, f"{ID}\n")


async def test_create_of_nothing_says_what_is_missing(suite: Suite) -> None:
    done = await suite.ctl("replicas", "create")
    assert done.code == Code.USAGE
    assert "no --mode and no --model" in done.stderr
    assert suite.asked == []


async def test_list_shows_state_node_and_jobs_and_passes_filters_on(suite: Suite) -> None:
    stale = info("ready", replica_id="b", created_at="2025-01-01T00:00:00Z", metadata={"stale": True, "node": "node-2"})
    suite.answers[BASE] = {"total": 2, "replicas": [info(), stale]}
    done = await suite.ctl("replicas", "list", "--status", "ready")
    old, young = (line.split() for line in done.stdout.splitlines()[1:])
    assert (old[0], old[2]) == ("b", "stale")
    assert (young[0], young[1], young[2], young[4], young[6]) == (ID, "llama3.1-8b", "ready", "node-1", "1/0")
    assert (await suite.ctl("replicas", "list", "--json")).json["total"] == 2


async def test_list_shows_a_group_as_one_replica_with_its_followers_below(suite: Suite) -> None:
    def member(name: str, rank: int, status: str = "ready", at: str = "01") -> dict[str, Any]:
        metadata = {"node": f"node-{rank + 1}", "group": "g-1", "rank": rank}
        return info(status, replica_id=name, created_at=f"2026-01-{at}T00:00:00Z", metadata=metadata)

    alone = info("ready", replica_id="alone", created_at="2026-01-02T00:00:00Z", metadata={"group": "a label"})
    listed = [member("follower", 1), alone, member("leader", 0, at="03")]
    suite.answers[BASE] = {"total": 3, "replicas": listed}

    async def shown(*flags: str) -> list[list[str]]:
        return [line.split() for line in (await suite.ctl("replicas", "list", *flags)).stdout.splitlines()[1:]]

    leader, follower, single = await shown()
    assert (leader[0], leader[1], leader[2], leader[4]) == ("leader", "llama3.1-8b", "ready", "node-1")
    assert (follower[:5], follower[6]) == (["follower", "└", "rank", "1", "ready"], "node-2")
    assert single[0] == "alone"
    listed[0] = member("follower", 1, "failed")
    leader, follower, _ = await shown()
    assert (leader[2], follower[4]) == ("failed", "failed")
    assert [line[0] for line in await shown("--status", "ready")] == ["alone"]
    assert [line[0] for line in await shown("--status", "failed")] == ["leader", "follower"]
    suite.answers["registry GET /health"] = {"status": "healthy"}
    assert "2 replicas: 1 failed, 1 ready" in (await suite.ctl("status")).stdout
    assert (await suite.ctl("replicas", "list", "--json")).json["replicas"] == listed


async def test_get_of_a_failed_replica_is_exit_1(suite: Suite) -> None:
    suite.answers[ONE] = {"info": info("failed", error_message="boom")}
    done = await suite.ctl("replicas", "get", ID)
    assert done.code == Code.FAILED
    assert "boom" in done.stdout
    assert (await suite.ctl("replicas", "get", ID, "--json")).json["replica_id"] == ID


TIMELINE = {
    "transitions": [
        {"at": "2026-01-01T00:00:00Z", "from": "pending", "to": "creating", "lasted_s": 0.2, "cause": "asked"}
    ],
    "stages": [{"name": "venv", "state": "done", "took_s": 75.0, "attempt": 1, "detail": ""}],
}


async def test_timeline_shows_transitions_and_stages(suite: Suite) -> None:
    suite.answers[f"{ONE}/timeline"] = TIMELINE
    done = await suite.ctl("replicas", "timeline", ID)
    assert "pending  creating" in done.stdout
    assert "1m15s" in done.stdout
    assert (await suite.ctl("replicas", "timeline", ID, "--json")).json == TIMELINE


async def test_timeline_and_logs_of_a_server_started_by_hand_come_from_its_babysitter(suite: Suite) -> None:
    """The fake router stands in for the babysitter."""
    suite.answers[f"registry GET /services/{ID}"] = record(ID, url=suite.router, metadata={"type": "mock"})
    suite.answers["router GET /timeline"] = TIMELINE
    assert (await suite.ctl("replicas", "timeline", ID)).code == 0
    suite.answers["router GET /logs"] = text("one\ntwo\n")
    assert (await suite.ctl("replicas", "logs", ID)).stdout == "one\ntwo\n"


def text(content: str) -> Any:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=content)

    return answer


async def test_logs_are_lines_or_one_document_each_and_cannot_steer_the_terminal(suite: Suite) -> None:
    suite.answers[f"{ONE}/logs"] = text("one\n\x1b[2Jtwo\nrest")
    assert (await suite.ctl("replicas", "logs", ID)).stdout == "one\n\x1b[2Jtwo\nrest\n"
    assert "\x1b[2J" not in (await suite.ctl("replicas", "logs", ID, screen=True)).stdout
    done = await suite.ctl("replicas", "logs", ID, "--stream", "stderr", "--json")
    assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == ["one", "\x1b[2Jtwo", "rest"]


async def test_stop_tells_everyone_before_it_complains(suite: Suite) -> None:
    suite.answers[f"registry POST /api/v1/replicas/{ID}/stop"] = {
        "replica_id": ID,
        "status": "stopped",
        "message": "ok",
    }
    done = await suite.ctl("replicas", "stop", "nobody", ID)
    assert done.code == Code.NOT_FOUND
    assert suite.calls(f"registry POST /api/v1/replicas/{ID}/stop") == [{"force": False}]


async def test_stop_all_deletes_what_is_there_and_waits_until_it_is_gone(suite: Suite) -> None:
    suite.answers[BASE] = {"replicas": [info()]}
    suite.answers[f"registry DELETE /api/v1/replicas/{ID}"] = {"replica_id": ID, "status": "stopped", "message": "ok"}
    left = [info("stopping"), info("stopping")]

    async def one(_request: web.Request) -> web.Response:
        if left:
            return web.json_response({"info": left.pop()})
        return web.json_response({"error": "gone"}, status=404)

    suite.answers[ONE] = one
    done = await suite.ctl("replicas", "stop", "--all", "--delete", "--wait")
    assert done.code == 0, done.stderr


async def test_retry_of_a_replica_that_has_not_failed_is_refused(suite: Suite) -> None:
    suite.answers[f"registry POST /api/v1/replicas/{ID}/retry"] = (409, {"error": "only a failed replica is retried"})
    done = await suite.ctl("replicas", "retry", ID)
    assert done.code == Code.REFUSED
    assert "only a failed replica is retried" in done.stderr


def test_a_wait_ends_when_the_start_becomes_late_and_a_second_one_waits_on_W43() -> None:
    way = ReplicaProgress(ID)
    way.take("snapshot", {"status": "waiting_for_ready", "late": False})
    assert not way.reached("ready")
    way.take("status", {"status": "waiting_for_ready", "late": True, "error_message": "refused"})
    assert way.reached("ready")
    assert not way.reached("stopped")
    problem = sorry(way)
    assert problem.code is Code.TIME_IS_UP
    assert "late" in str(problem)
    again = ReplicaProgress(ID)
    again.take("snapshot", {"status": "waiting_for_ready", "late": True})
    assert not again.reached("ready")
    again.take("status", {"status": "ready", "late": False})
    assert again.reached("ready")


def test_a_way_has_a_share_unless_only_the_cluster_knows() -> None:
    way = ReplicaProgress(ID)
    shares = []
    for name, data in LIFE:
        way.take(name, data)
        shares.append(way.share)
    known = [share for share in shares if share is not None]
    assert known == sorted(known)
    assert shares.count(None) == 2
    assert known[-1] == 1.0


async def test_replicas_are_put_to_sleep_and_woken(suite: Suite) -> None:
    for verb, message in (("sleep", "goes to sleep"), ("wake", "wakes")):
        answer = {"replica_id": ID, "status": "asleep", "message": f"Replica {ID} {message}"}
        suite.answers[f"registry POST /api/v1/replicas/{ID}/{verb}"] = (202, answer)
        done = await suite.ctl("replicas", verb, ID)
        assert (done.code, message in done.stdout + done.stderr) == (0, True)
    suite.answers[f"registry POST /api/v1/replicas/{ID}/sleep"] = (409, {"error": "it cannot sleep: x"})
    done = await suite.ctl("replicas", "sleep", ID)
    assert done.code != 0
    assert "it cannot sleep: x" in done.stderr
