"""Commands against a fake registry and a fake router: tables, JSON, exit codes, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ctl.codes import Code
from tests.ctl.conftest import Suite, record

SERVING = {"name": "a-server", "models": ["m"], "healthy": True, "in_flight": 2, "standing": "fresh"}
LISTED = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "a"}]}


async def test_services_are_aligned_columns_in_a_pipe_and_never_cut(suite: Suite) -> None:
    long = "x" * 100
    suite.answers["registry GET /services"] = {
        "services": [record("b", metadata={}), record(long), record("a", draining=True)],
        "total": 3,
    }
    done = await suite.ctl("services")
    assert done.code == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["NAME", "TYPE", "STATUS", "HEALTHY", "BEAT", "URL", "MODELS"]
    assert [line.split()[0] for line in lines[1:]] == ["a", "b", long]
    assert lines[1].split()[2] == "draining"
    assert lines[1].index("openai-api") == lines[0].index("TYPE")


async def test_services_as_json_are_the_registrys_answer(suite: Suite) -> None:
    suite.answers["registry GET /services"] = {"services": [record("a"), record("b", metadata={})], "total": 2}
    assert (await suite.ctl("services", "--json")).json["total"] == 2
    only = (await suite.ctl("--json", "services", "--type", "openai-api")).json
    assert [one["name"] for one in only["services"]] == ["a"]


async def test_names_cannot_steer_the_terminal(suite: Suite) -> None:
    suite.answers["registry GET /services"] = {"services": [record("\x1b[2Jevil\x07")]}
    for screen in (False, True):
        done = await suite.ctl("services", screen=screen)
        assert "\x1b[2J" not in done.stdout
        assert "\x07" not in done.stdout
        assert "evil" in done.stdout


async def test_a_token_goes_to_the_registry_and_never_to_the_router(suite: Suite) -> None:
    token = suite.home / "token"
    token.write_text("t" * 40)
    token.chmod(0o600)
    suite.env["SVC_TOKEN_FILE"] = str(token)
    suite.answers["registry GET /services"] = {"services": []}
    suite.answers["router GET /v1/models"] = LISTED
    suite.answers["router GET /services"] = {"services": [SERVING]}
    assert (await suite.ctl("services")).code == 0
    assert (await suite.ctl("models")).code == 0
    sent = {key: headers.get("Authorization") for key, _, headers in suite.asked}
    assert sent == {
        "registry GET /services": f"Bearer {'t' * 40}",
        "router GET /v1/models": None,
        "router GET /services": None,
    }


async def test_a_token_file_that_others_can_read_is_refused_with_the_remedy(suite: Suite) -> None:
    token = suite.home / "token"
    token.write_text("t" * 40)
    token.chmod(0o644)
    done = await suite.ctl("services", "--token-file", str(token))
    assert done.code == Code.CONFIG
    assert f"chmod 600 {token}" in done.stderr
    assert suite.asked == []


@pytest.mark.parametrize(
    ("status", "content", "code", "told"),
    [
        (401, {"error": "a token is needed"}, Code.REFUSED, "a token is needed; give it with --token-file"),
        (404, {"error": "gone"}, Code.NOT_FOUND, "the registry: gone"),
        (422, {"detail": [{"loc": ["body", "a", "b"], "msg": "bad"}]}, Code.REFUSED, "(422): a.b: bad"),
        (503, {"error": {"message": "away"}}, Code.FAILED, "the registry failed (503): away; 'svcctl doctor'"),
    ],
)
async def test_a_refusal_has_its_own_exit_code_and_says_what_the_service_said(
    suite: Suite, status: int, content: Any, code: Code, told: str
) -> None:
    suite.answers["registry GET /services"] = (status, content)
    done = await suite.ctl("services")
    assert done.code == code
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_the_second_registry_is_asked_when_the_first_does_not_answer(suite: Suite) -> None:
    suite.answers["registry GET /services"] = {"services": []}
    done = await suite.ctl("services", "--registry-url", f"http://127.0.0.1:1,{suite.registry}", "--json")
    assert done.code == 0


async def test_a_write_that_may_have_been_done_is_not_asked_for_again_elsewhere(suite: Suite) -> None:
    async def cut(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    suite.answers["registry POST /api/v1/replicas"] = cut
    suite.answers["router POST /api/v1/replicas"] = (201, {"replica_id": "b"})
    both = f"{suite.registry},{suite.router}"
    done = await suite.ctl("replicas", "create", "--mode", "replica", "--model", "m", "--api-url", both)
    assert done.code == Code.UNREACHABLE
    assert suite.calls("router POST /api/v1/replicas") == []
    done = await suite.ctl(
        "replicas", "create", "--mode", "replica", "--model", "m", "--api-url", f"http://127.0.0.1:1,{suite.router}"
    )
    assert done.stdout == "b\n"


async def test_models_count_the_replicas_that_can_be_asked(suite: Suite) -> None:
    down = {**SERVING, "name": "b-server", "healthy": False, "in_flight": 0}
    suite.answers["router GET /v1/models"] = LISTED
    suite.answers["router GET /services"] = {"services": [SERVING, down], "total": 2}
    done = await suite.ctl("models")
    assert done.stdout.splitlines()[1].split() == ["m", "1/2", "2", "a", "a-server"]


async def test_drain_takes_a_babysitters_name_for_its_server_and_waits_until_it_is_idle(suite: Suite) -> None:
    suite.answers["registry GET /services"] = {"services": [record("a", metadata={"type": "mock"}), record("a-server")]}
    suite.answers["registry POST /services/a-server/drain"] = {"message": "drains"}
    left = [("fresh", 0), ("draining", 2), ("draining", 0)]

    async def services(_request: web.Request) -> web.Response:
        standing, count = left.pop(0)
        return web.json_response({"services": [{**SERVING, "standing": standing, "in_flight": count}]})

    suite.answers["router GET /services"] = services
    done = await suite.ctl("drain", "a", "--wait", "--json")
    assert done.code == 0
    assert done.json["in_flight"] == 0
    assert left == []


async def test_drain_asks_for_a_hand_over_A23(suite: Suite) -> None:
    suite.answers["registry GET /services"] = {"services": [record("a-server")]}
    asked: list[str] = []

    async def drain(request: web.Request) -> web.Response:
        asked.append(request.query_string)
        return web.json_response({"message": "drains"})

    suite.answers["registry POST /services/a-server/drain"] = drain
    for more in ((), ("--hand-over",)):
        assert (await suite.ctl("drain", "a-server", *more)).code == 0
    assert asked == ["", "hand_over=true"]


async def test_a_drain_that_takes_too_long_says_so_and_goes_on(suite: Suite) -> None:
    suite.answers["registry GET /services"] = {"services": [record("a-server")]}
    suite.answers["registry POST /services/a-server/drain"] = {"message": "drains"}
    suite.answers["router GET /services"] = {"services": [{**SERVING, "standing": "draining"}]}
    done = await suite.ctl("drain", "a-server", "--wait", "--timeout", "0")
    assert done.code == Code.TIME_IS_UP
    assert "2 request(s)" in done.stderr


async def test_undrain_of_an_unknown_name_is_not_found(suite: Suite) -> None:
    suite.answers["registry GET /services"] = {"services": []}
    done = await suite.ctl("undrain", "nobody")
    assert done.code == Code.NOT_FOUND
    assert "'svcctl services' lists them" in done.stderr


DECISION = {
    "model": "m",
    "rule": "round_robin",
    "panic": False,
    "picked": 1,
    "candidates": [
        {"id": 2, "name": "b-server", "standing": "draining", "weight": 1.0, "in_flight": 0, "score": None,
         "limit": 0, "cache_type": None, "excluded": "draining"},
        {"id": 1, "name": "a-server", "standing": "fresh", "weight": 1.0, "in_flight": 3, "score": 0.5,
         "limit": 8, "cache_type": "paged", "excluded": None},
    ],
}  # fmt: skip


async def test_explain_shows_the_pick_first_and_why_not_the_others(suite: Suite) -> None:
    suite.answers["router POST /admin/explain"] = DECISION
    done = await suite.ctl("explain", "m", "Hello", "--cache-key", "k")
    assert done.code == 0
    first, _, picked, other = done.stdout.splitlines()
    assert first == "m: would go to a-server, by the rule 'round_robin'"
    assert picked.split() == ["→", "a-server", "fresh", "0.5", "3/8", "1", "paged", "-"]
    assert other.split()[-1] == "draining"
    assert suite.calls("router POST /admin/explain")[0]["prompt_cache_key"] == "k"
    suite.answers["router POST /admin/explain"] = {**DECISION, "changed": ["top_k", "n"]}
    done = await suite.ctl("explain", "m")
    assert done.stdout.splitlines()[0].endswith("'round_robin'; the router's settings change top_k, n in it")


async def test_explain_fails_when_nobody_would_get_the_request(suite: Suite) -> None:
    suite.answers["router POST /admin/explain"] = {"model": "m", "picked": None, "candidates": []}
    done = await suite.ctl("explain", "m")
    assert done.code == Code.FAILED
    assert "503" in done.stdout
    assert "'svcctl models' lists" in done.stdout


async def test_explain_takes_a_whole_request_from_a_file(suite: Suite, tmp_path: Path) -> None:
    suite.answers["router POST /admin/explain"] = DECISION
    body = tmp_path / "request.json"
    body.write_text('{"model": "m", "prompt": "x"}')
    assert (await suite.ctl("explain", "--body", str(body), "--json")).json == DECISION
    assert suite.calls("router POST /admin/explain") == [{"model": "m", "prompt": "x"}]
    body.write_text("[")
    assert (await suite.ctl("explain", "--body", str(body))).code == Code.CONFIG


async def test_status_asks_both_and_fails_when_one_does_not_answer(suite: Suite) -> None:
    suite.answers["registry GET /health"] = {
        "status": "healthy", "registry": "running", "registered_services": 2, "healthy_services": 2,
    }  # fmt: skip
    suite.answers["registry GET /api/v1/replicas"] = {"replicas": [{"replica_id": "a", "status": "ready"}]}
    suite.answers["router GET /health"] = {"status": "healthy", "router": "running", "healthy_services": "1/1"}
    done = await suite.ctl("status")
    assert done.code == 0, done.stdout
    assert "1/1 replicas can be asked" in done.stdout
    assert "1 replicas: 1 ready" in done.stdout
    suite.router = "http://127.0.0.1:1"
    done = await suite.ctl("status", "--json")
    assert done.code == Code.FAILED
    assert [one["health"] for one in done.json["services"]] == ["healthy", "no answer"]


def stream(*events: str, done: bool = True) -> Any:
    """A chat completion as server-sent events."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": keep-alive\n\n")
        for event in events:
            await response.write(f"data: {event}\n\n".encode())
        if done:
            await response.write(b"data: [DONE]\n\n")
        return response

    return answer


def delta(text: str, **choice: Any) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}, **choice}]})


CHAT = "router POST /v1/chat/completions"


async def test_chat_prints_the_text_and_nothing_else_in_a_pipe(suite: Suite) -> None:
    suite.answers[CHAT] = stream(delta("Hel"), delta("lo\n"), delta("you", finish_reason="stop"))
    done = await suite.ctl("chat", "m", "Hi", "--system", "Be brief", "--max-tokens", "5")
    assert (done.code, done.stdout, done.stderr) == (0, "Hello\nyou\n", "")
    (body,) = suite.calls(CHAT)
    assert body["stream"] is True
    assert body["max_tokens"] == 5
    assert "temperature" not in body
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


async def test_chat_as_json_is_one_document_with_times_and_usage(suite: Suite) -> None:
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": 7}})
    suite.answers[CHAT] = stream(delta("Hel"), delta("lo", finish_reason="stop"), usage)
    said = (await suite.ctl("chat", "m", "Hi", "--json")).json
    assert said["text"] == "Hello"
    assert said["tokens"] == 7
    assert said["finish_reason"] == "stop"
    assert said["ttft_s"] >= 0


async def test_chat_on_a_terminal_tells_the_pace(suite: Suite) -> None:
    suite.answers[CHAT] = stream(delta("Hello", finish_reason="length"))
    done = await suite.ctl("chat", "m", "Hi", screen=True)
    assert "Hello" in done.stdout
    assert "first token after" in done.stderr
    assert "ended by length" in done.stderr


async def test_a_stream_that_breaks_keeps_its_text_and_fails_A1(suite: Suite) -> None:
    error = json.dumps({"error": {"message": "upstream died", "code": "upstream_died"}})
    suite.answers[CHAT] = stream(delta("Hel"), error, done=False)
    done = await suite.ctl("chat", "m", "Hi")
    assert done.code == Code.FAILED
    assert done.stdout == "Hel\n"
    assert "upstream died" in done.stderr
    suite.answers[CHAT] = stream(delta("Hel"), done=False)
    done = await suite.ctl("chat", "m", "Hi")
    assert done.code == Code.FAILED
    assert "ended early" in done.stderr


async def test_chat_with_an_unknown_model_says_where_the_known_ones_are_W33(suite: Suite) -> None:
    suite.answers[CHAT] = (503, {"error": {"message": "no replica serves 'x'", "code": "model_not_found"}})
    done = await suite.ctl("chat", "x", "Hi")
    assert done.code == Code.NOT_FOUND
    assert "no replica serves 'x'; 'svcctl models' lists those that can be asked" in done.stderr


async def test_an_error_under_json_is_a_document_on_standard_error(suite: Suite) -> None:
    suite.registry = "http://127.0.0.1:1"
    done = await suite.ctl("services", "--json")
    assert done.code == Code.UNREACHABLE
    assert done.stdout == ""
    told = json.loads(done.stderr)
    assert told["exit_code"] == 3
    assert "svcctl up" in told["hint"]


async def test_svcctl_alone_explains_itself(suite: Suite) -> None:
    done = await suite.ctl()
    assert done.code == Code.USAGE
    assert "svcctl up --demo" in done.stdout


async def test_an_address_that_is_none_is_a_usage_error(suite: Suite) -> None:
    done = await suite.ctl("services", "--registry-url", "localhost:18000")
    assert done.code == Code.USAGE
    assert "write http://HOST:PORT" in done.stderr


async def test_a_stranger_at_the_address_is_told_as_one(suite: Suite) -> None:
    async def page(_request: web.Request) -> web.Response:
        return web.Response(text="<html>", content_type="text/html")

    for key in ("registry GET /services", "registry GET /health", "router GET /services", "router GET /health"):
        suite.answers[key] = page
    done = await suite.ctl("services")
    assert done.code == Code.FAILED
    assert "something else than JSON" in done.stderr
    assert "--registry-url" in done.stderr
    for command in ("status", "doctor", "top"):
        done = await suite.ctl(command)
        assert done.code != 0
        assert "Traceback" not in done.stderr


def served(suite: Suite) -> None:
    """A replica with two adapters, whose babysitter is the fake router."""
    adapters = [
        {"name": "sql", "state": "loaded", "error": None},
        {"name": "x", "state": "failed", "error": "no\nfile"},
    ]
    metadata = {"type": "openai-api", "babysitter_url": suite.router, "replica": {"adapters": adapters}}
    suite.answers["registry GET /services"] = {"services": [record("q-server", metadata=metadata), record("plain")]}


async def test_adapters_are_listed_with_what_the_engine_said(suite: Suite) -> None:
    served(suite)
    done = await suite.ctl("lora", "list")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["REPLICA", "ADAPTER", "STATE", "ERROR"],
        ["q-server", "sql", "loaded", "-"],
        ["q-server", "x", "failed", "no", "file"],
    ]
    assert list((await suite.ctl("lora", "list", "q", "--json")).json["adapters"]) == ["q-server"]
    assert (await suite.ctl("lora", "list", "plain", "--json")).json == {"adapters": {}}
    assert (await suite.ctl("lora", "list", "nobody")).code == Code.NOT_FOUND


async def test_adapter_is_loaded_and_unloaded_at_the_babysitter_with_its_own_token(suite: Suite) -> None:
    served(suite)
    for name, text in (("token", "t" * 40), ("own", "o" * 40)):
        (suite.home / name).write_text(text)
        (suite.home / name).chmod(0o600)
    suite.env["SVC_TOKEN_FILE"] = str(suite.home / "token")
    suite.answers["router POST /lora/load"] = {"name": "sql", "state": "loaded", "error": None}
    done = await suite.ctl("lora", "load", "q", "sql", "--babysitter-token-file", str(suite.home / "own"))
    assert (done.code, done.stderr.strip()) == (0, "q-server: sql is loaded")
    assert suite.calls("router POST /lora/load") == [{"name": "sql"}]
    assert [headers["Authorization"] for key, _, headers in suite.asked if "lora" in key] == [f"Bearer {'o' * 40}"]
    suite.answers["router POST /lora/unload"] = (404, {"error": "no adapter 'y' here: name it under [lora] adapters"})
    done = await suite.ctl("lora", "unload", "q", "y")
    assert done.code == Code.NOT_FOUND
    assert "name it under [lora]" in done.stderr
    assert "Authorization" not in suite.asked[-1][2]
    assert (await suite.ctl("lora", "load", "plain", "sql")).code == Code.FAILED
