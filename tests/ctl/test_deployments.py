"""Deployments' commands against a fake registry."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ctl.codes import Code
from tests.ctl.conftest import Suite

ROOT = "/api/v1/deployments"
FLEET = (
    "deployments:\n  a: {template: mock, parameters: {model: a}}\n  b: {template: mock, replicas: {min: 0, max: 2}}\n"
)


def info(name: str = "a", **members: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "version": 3,
        "revision": 2,
        "phase": "ready",
        "spec": {"template": "mock"},
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
        "wanted": 1,
        "ready": 1,
        **members,
    }


def change(name: str, word: str = "created", **members: Any) -> dict[str, Any]:
    return {"name": name, "change": word, "version": 1, "revision": 1, "diff": {}, "warnings": [], **members}


def puts(suite: Suite, answers: dict[str, tuple[int, dict[str, Any]]]) -> list[str]:
    """Let the registry take PUTs; the list grows by `NAME` or `NAME?` for a dry run."""
    seen: list[str] = []

    def handler(name: str) -> Any:
        async def put(request: web.Request) -> web.Response:
            seen.append(name + ("?" if request.query.get("dry_run") == "true" else ""))
            status, content = answers[name]
            return web.json_response(content, status=status)

        return put

    for name in answers:
        suite.answers[f"registry PUT {ROOT}/{name}"] = handler(name)
    return seen


def fleet(suite: Suite, text: str = FLEET, name: str = "fleet.yaml") -> str:
    file = suite.home / name
    file.write_text(text)
    return str(file)


async def test_apply_checks_all_before_it_changes_one(suite: Suite) -> None:
    seen = puts(suite, {"a": (200, change("a")), "b": (200, change("b", "unchanged", warnings=["no node has mock"]))})
    done = await suite.ctl("apply", "-f", fleet(suite))
    assert done.code == 0, done.stderr
    assert seen == ["a?", "b?", "a"]
    assert done.stdout == "a: created (revision 1)\nb: unchanged\n"
    assert "b: no node has mock" in done.stderr


async def test_a_refused_deployment_keeps_the_others_from_changing(suite: Suite) -> None:
    seen = puts(suite, {"a": (200, change("a")), "b": (422, {"error": "template: no node has 'mock'"})})
    done = await suite.ctl("apply", "-f", fleet(suite))
    assert done.code == Code.REFUSED
    assert seen == ["a?", "b?"]
    assert "b: " in done.stderr
    assert "no node has 'mock'" in done.stderr
    assert "nothing is changed" in done.stderr


async def test_a_real_put_that_fails_says_what_was_applied_and_what_not(suite: Suite) -> None:
    seen: list[str | None] = []

    def handler(name: str, version: int) -> Any:
        async def put(request: web.Request) -> web.Response:
            if request.query.get("dry_run") != "true":
                seen.append(request.headers.get("If-Match"))
                if name == "b":
                    return web.json_response({"error": "If-Match: its version is 8, not 6"}, status=412)
            return web.json_response(change(name, "rolls", version=version))

        return put

    for name, version in (("a", 1), ("b", 7), ("c", 2)):
        suite.answers[f"registry PUT {ROOT}/{name}"] = handler(name, version)
    done = await suite.ctl("apply", "-f", fleet(suite, FLEET + "  c: {template: mock}\n"))
    assert done.code == Code.REFUSED
    assert seen == ["0", "6"], "what each dry run saw"
    assert "b: " in done.stderr
    assert "its version is 8" in done.stderr
    assert "applied: a; not applied: b, c" in " ".join(done.stderr.split())


@pytest.mark.parametrize("text", ["deployments: {a: {template: mock, replicas: {min: 2, max: 1}}}", "a: 1", "- x", "{"])
async def test_a_fleet_file_with_an_error_asks_nobody(suite: Suite, text: str) -> None:
    done = await suite.ctl("apply", "-f", fleet(suite, text))
    assert done.code == Code.CONFIG
    assert suite.asked == []


async def test_diff_only_shows(suite: Suite) -> None:
    differs = change("a", "rolls", revision=3, diff={"parameters.model": ["x", "a"], "accelerators": [None, 2]})
    seen = puts(suite, {"a": (200, differs)})
    toml = fleet(suite, '[deployments.a]\ntemplate = "mock"\naccelerators = 2\n', "fleet.toml")
    done = await suite.ctl("apply", "-f", toml, "--diff")
    assert seen == ["a?"]
    assert done.stdout == "a: rolls (revision 3)\n  parameters.model: x -> a\n  accelerators: unset -> 2\n"
    told = (await suite.ctl("apply", "-f", toml, "--diff", "--json")).json
    assert told["dry_run"] is True
    assert told["changes"][0]["change"] == "rolls"


async def test_run_puts_what_its_flags_say(suite: Suite) -> None:
    puts(suite, {"q": (201, change("q"))})
    schema = {"properties": {"model": {"type": "string"}, "start_delay_s": {"type": "number"}}}
    suite.answers["registry GET /api/v1/templates"] = {
        "total": 1,
        "templates": [{"name": "mock", "parameters": schema}],
    }
    flags = [
        "--set",
        "model=7",
        "--set",
        "start_delay_s=3",
        "--accelerators",
        "1",
        "--replicas",
        "0..2",
        "--idle",
        "900",
    ]
    done = await suite.ctl("run", "q", "--template", "mock", *flags)
    assert done.code == 0, done.stderr
    assert suite.calls(f"registry PUT {ROOT}/q")[-1] == {
        "template": "mock",
        "parameters": {"model": "7", "start_delay_s": 3},
        "accelerators": 1,
        "replicas": {"min": 0, "max": 2},
        "idle_s": 900,
    }
    for wrong in (["--replicas", "2..1"], ["--set", "x"], ["--idle", "-1"]):
        assert (await suite.ctl("run", "q", "--template", "mock", *wrong)).code == Code.USAGE


async def test_run_waits_and_says_how_far_it_is(suite: Suite) -> None:
    puts(suite, {"q": (201, change("q"))})
    states = [info("q", phase="starting", ready=0, stage="loading", percent=41, eta_s=12.0), info("q")]

    async def get(_: web.Request) -> web.Response:
        return web.json_response(states.pop(0) if len(states) > 1 else states[0])

    suite.answers[f"registry GET {ROOT}/q"] = get
    done = await suite.ctl("run", "q", "--template", "mock", "--wait")
    assert done.code == 0
    assert "q: starting (loading): 41% eta 12s" in done.stderr
    assert "q: ready" in done.stderr


async def test_waiting_follows_the_events_and_asks_for_nothing_else(suite: Suite) -> None:
    suite.answers[f"registry POST {ROOT}/a/wake"] = info(phase="cold", ready=0)

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for state in (info(phase="starting", ready=0, stage="loading"), info(phase="ready")):
            await response.write(b"event: deployment\ndata: %b\n\n" % json.dumps(state).encode())
        await asyncio.sleep(60)  # it stays open
        return response

    suite.answers[f"registry GET {ROOT}/a/events"] = events
    answers = [info()]

    async def get(_: web.Request) -> web.Response:
        return web.json_response(answers.pop())  # once: what the command prints at its end

    suite.answers[f"registry GET {ROOT}/a"] = get
    done = await suite.ctl("wake", "a", "--wait", "--timeout", "30", "--json")
    assert done.code == 0, done.stderr
    assert done.json["phase"] == "ready"
    assert answers == []


async def test_waiting_ends_when_it_is_deleted(suite: Suite) -> None:
    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"event: end\ndata: {}\n\n")
        return response

    suite.answers[f"registry POST {ROOT}/a/wake"] = info()
    suite.answers[f"registry GET {ROOT}/a/events"] = events
    done = await suite.ctl("wake", "a", "--wait")
    assert done.code == Code.NOT_FOUND
    assert "a was deleted" in done.stderr


async def test_waiting_ends_with_the_reason_or_the_time(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctl.deployments.SETTLE_S", 0.0)
    suite.answers[f"registry POST {ROOT}/a/wake"] = info(phase="queued")
    suite.answers[f"registry GET {ROOT}/a"] = info(phase="unschedulable", reason="needs 4 cuda, the largest has 2")
    done = await suite.ctl("wake", "a", "--wait")
    assert done.code == Code.FAILED
    assert "a is unschedulable: needs 4 cuda, the largest has 2" in done.stderr
    suite.answers[f"registry GET {ROOT}/a"] = info(phase="cold", wanted=0, ready=0)
    assert (await suite.ctl("wake", "a", "--wait", "--timeout", "0.2")).code == Code.TIME_IS_UP


async def test_the_list_says_phase_eta_and_reason(suite: Suite) -> None:
    listed = [
        info("b", phase="queued", ready=0, position=2, eta_s=8.0, reason="waits for 1 cuda"),
        info("a", phase="cold", wanted=0, ready=0),
    ]
    suite.answers[f"registry GET {ROOT}"] = {"total": 2, "deployments": listed}
    lines = (await suite.ctl("deployments")).stdout.splitlines()
    assert lines[0].split() == [
        "NAME",
        "MODEL",
        "PHASE",
        "WANTED",
        "READY",
        "STARTING",
        "ASLEEP",
        "REV",
        "ETA",
        "REASON",
    ]
    assert lines[1].split() == ["a", "a", "cold", "0", "0", "0", "0", "2", "-", "-"]
    assert "queued (place 2)" in lines[2]
    assert "eta 8.0s" in lines[2]
    assert lines[2].endswith("waits for 1 cuda")
    assert (await suite.ctl("deployments", "-o", "json")).json["total"] == 2
    assert (await suite.ctl("--json", "deployments")).json["total"] == 2
    assert (await suite.ctl("deployments", "nobody")).code == Code.NOT_FOUND


async def test_one_with_its_replicas(suite: Suite) -> None:
    one = {"request_id": "dep-u-1", "node": "n1", "revision": 2, "status": "ready", "replica_id": "r1", "leaving": True}
    suite.answers[f"registry GET {ROOT}/a"] = info(replicas=[one])
    done = await suite.ctl("deployments", "a")
    assert done.stdout.splitlines()[-1].split() == ["dep-u-1", "r1", "n1", "2", "leaving"]


async def test_scale_sleep_delete_and_rollouts_ask_what_they_say(suite: Suite) -> None:
    for verb in ("scale", "sleep", "undo", "pause", "resume"):
        suite.answers[f"registry POST {ROOT}/a/{verb}"] = info()
    suite.answers[f"registry DELETE {ROOT}/a"] = info()
    for words in (
        ("scale", "a", "2"),
        ("scale", "a", "auto"),
        ("sleep", "a"),
        ("rollout", "undo", "a"),
        ("rollout", "undo", "a", "--to", "4"),
        ("rollout", "pause", "a"),
        ("rollout", "resume", "a"),
        ("delete", "a"),
    ):
        done = await suite.ctl(*words)
        assert done.code == 0, (words, done.stderr)
        assert done.stderr.startswith("a: ")
    assert suite.calls(f"registry POST {ROOT}/a/scale") == [{"replicas": 2}, {"replicas": None}]
    assert suite.calls(f"registry POST {ROOT}/a/undo") == [{"revision": None}, {"revision": 4}]
    assert len(suite.calls(f"registry DELETE {ROOT}/a")) == 1
    assert (await suite.ctl("scale", "a", "many")).code == Code.USAGE
    assert (await suite.ctl("delete", "b")).code == Code.NOT_FOUND


async def test_a_rollout_shows_its_revisions(suite: Suite) -> None:
    history = [{"revision": 1, "at": "2026-01-01T00:00:00Z", "spec": {}, "cause": "apply"}]
    runs = [{"request_id": f"dep-u-{n}", "node": "n", "revision": n, "status": "ready"} for n in (1, 2)]
    suite.answers[f"registry GET {ROOT}/a"] = info(phase="rolling", paused=True, history=history, replicas=runs)
    lines = (await suite.ctl("rollout", "status", "a")).stdout.splitlines()
    assert lines[0] == "a: rolling, paused, 1 of 1 ready, revision 2"
    assert lines[2].split()[:4] == ["2", "2026-01-01T00:00:00Z", "1", "current"]
    assert lines[3].split() == ["1", "2026-01-01T00:00:00Z", "1", "-", "apply"]


async def test_templates_with_their_parameters(suite: Suite) -> None:
    schema = {
        "properties": {"model": {"type": "string", "description": "a path"}, "n": {"type": "integer", "default": 3}}
    }
    vllm = {"name": "vllm", "accelerators": 1, "sleeps": True, "parameters": {**schema, "required": ["model"]}}
    broken = {"name": "broken", "error": "backend.type: missing", "nodes": ["n2"]}
    listed = [{**vllm, "nodes": ["n1", "n2"], "description": "vLLM"}, broken]
    suite.answers["registry GET /api/v1/templates"] = {"total": 2, "templates": listed}
    done = await suite.ctl("templates")
    assert "of no use: backend.type: missing" in done.stdout.splitlines()[1]
    assert "model* n" in done.stdout.splitlines()[2]
    one = await suite.ctl("templates", "vllm")
    assert one.stdout.splitlines()[-2:] == ["  model <string>: a path", "  n <integer> (default: 3)"]
    assert (await suite.ctl("templates", "vllm", "--json")).json["total"] == 1
    assert (await suite.ctl("templates", "none")).code == Code.NOT_FOUND


async def test_from_configs_writes_a_file_that_apply_reads(suite: Suite) -> None:
    config = suite.home / "m.toml"
    config.write_text('name = "m"\nport = 1\n[backend]\ntype = "mock"\nmodels = ["m"]\n')
    target = suite.home / "fleet.yaml"
    done = await suite.ctl("fleet", "from-configs", str(config), "-o", str(target))
    assert done.code == 0, done.stderr
    puts(suite, {"m": (200, change("m"))})
    assert (await suite.ctl("apply", "-f", str(target))).code == 0
    sent = suite.calls(f"registry PUT {ROOT}/m")[0]
    assert json.loads(json.dumps(sent))["parameters"] == {"model": "m"}
    assert (await suite.ctl("fleet", "from-configs", str(Path("/nowhere.toml")))).code == Code.CONFIG
