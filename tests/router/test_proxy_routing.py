"""Policies, aliases and fallbacks on the wire."""

import asyncio
import json
from typing import Any, cast

import pytest

from common.settings import Layer, SettingsError, build
from router.facts import PolicyNeeds, read_json, with_model
from router.model import Table
from router.policy.models import ModelRule, ModelRules
from router.settings import RouterSettings
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, event, plain
from tests.router.test_proxy_checks import until

LONG = "lorem ipsum " * 400


async def answer_ok(call: Call) -> None:
    await call.send(plain(b'{"ok":1}'))


def chat(text: str, *, stream: bool = False, **more: object) -> bytes:
    return json.dumps(
        {"model": "m", "stream": stream, "messages": [{"role": "user", "content": text}], **more}
    ).encode()


async def test_a_prompt_goes_where_its_beginning_is(planes: MakePlane) -> None:
    async def stream(call: Call) -> None:
        for part in (SSE_HEAD, event("x"), DONE):
            await call.send(part)

    plane = await planes()
    replicas = [await plane.add(stream) for _ in range(3)]
    endpoints = plane.route(*replicas)
    view = plane.engine.chooser.fleet.view(endpoints[1])
    view.place(read_json(chat(LONG), want_text=False, forwarded=None, needs=WANTS), plane.engine.now()).over(
        plane.engine.now()
    )
    for number in range(4):
        assert (await plane.post(chat(LONG + f"again {number} " * 100, stream=True))).status == 200
    assert [len(replica.calls) for replica in replicas] == [0, 4, 0]
    assert view.requests == view.outstanding == 0
    assert view.pace.count > 0


WANTS = PolicyNeeds(lambda _model, _policy: True, None, None, sessions=False)


async def test_reported_cached_tokens_reach_the_belief(planes: MakePlane) -> None:
    usage = b'{"usage":{"prompt_tokens":100,"prompt_tokens_details":{"cached_tokens":25}}}'

    async def stream(call: Call) -> None:
        chunk = b"data: %b\n\n" % usage
        for part in (SSE_HEAD, event("x"), b"%x\r\n%b\r\n" % (len(chunk), chunk), DONE):
            await call.send(part)

    async def whole(call: Call) -> None:
        await call.send(plain(usage))

    for script, is_stream in ((stream, True), (whole, False)):
        plane = await planes()
        endpoints = plane.route(await plane.add(script), await plane.add(script))
        await plane.post(chat(LONG, stream=is_stream))
        views = [plane.engine.chooser.fleet.view(endpoint) for endpoint in endpoints]
        assert [view.reports for view in views].count(True) == 1


def chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


START = b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":25,"cache_read_input_tokens":75}}}\n\n'
STOP = b'event: message_delta\ndata: {"usage":{"output_tokens":7}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
COMPLETED = (
    b"event: response.completed\ndata: "
    b'{"type":"response.completed","response":{"usage":{"input_tokens":100,"input_tokens_details":{"cached_tokens":75},'
    b'"output_tokens":7,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":107},"user":null,"metadata":{}}}\n\n'
)


@pytest.mark.parametrize(
    ("path", "events"),
    [("/v1/messages", [START, STOP]), ("/v1/responses", [b'data: {"type":"response.created"}\n\n', COMPLETED])],
    ids=["messages", "responses"],
)
async def test_a_stream_tells_its_cached_tokens_in_the_words_of_its_api_W46(
    planes: MakePlane, path: str, events: list[bytes]
) -> None:
    async def stream(call: Call) -> None:
        await call.send(SSE_HEAD)
        for one in events:
            await call.send(chunk(one))
            await asyncio.sleep(0.02)
        await call.send(b"0\r\n\r\n")

    plane = await planes()
    endpoints = plane.route(await plane.add(stream), await plane.add(stream))
    views = [plane.engine.chooser.fleet.view(endpoint) for endpoint in endpoints]
    for view in views:
        view.reports = True  # so that the only lesson of the pace is of the bytes that usage says were read
    body = chat(LONG, stream=True)
    assert (await plane.post(body, path)).body.endswith(b"0\r\n\r\n")
    size = read_json(body, want_text=False, forwarded=None, needs=WANTS).prompt_bytes
    assert max(view.pace.bytes for view in views) == pytest.approx(0.25 * size, rel=0.001)


async def test_the_log_line_tells_the_decision(planes: MakePlane) -> None:
    plane = await planes(access_log_sample=1.0)
    plane.route(await plane.add(answer_ok), await plane.add(answer_ok))
    await plane.post(chat(LONG))
    [line] = plane.engine.log_lines
    assert (line["policy"], line["expected_cached_bytes"]) == ("cost", 0)
    assert set(cast("dict[str, float]", line["scores"])) == {"r0", "r1"}
    assert "lorem" not in json.dumps(line)


async def test_a_failed_try_leaves_nothing_behind(planes: MakePlane) -> None:
    plane = await planes()
    ok = await plane.add(answer_ok)
    endpoints = plane.route(1, ok)
    for _ in range(4):
        assert (await plane.post(chat(LONG))).status == 200
    for endpoint in endpoints:
        view = plane.engine.chooser.fleet.view(endpoint)
        assert (view.requests, view.outstanding, view.work_bytes) == (0, 0, 0)


async def test_a_policy_may_be_asked_for_only_where_that_is_allowed(planes: MakePlane) -> None:
    for allowed, rule in ((False, "cost"), (True, "round_robin")):
        plane = await planes(allow_policy_header=allowed)
        replica = await plane.add(answer_ok)
        plane.route(replica, await plane.add(answer_ok))
        said = (await plane.post(chat("hi"), "/admin/explain", "x-routing-policy: round_robin\r\n")).body
        assert json.loads(said)["rule"] == rule
        assert (await plane.post(chat("hi"), headers="x-routing-policy: round_robin\r\n")).status == 200
        refused = await plane.post(chat("hi"), headers="x-routing-policy: best\r\n")
        assert refused.status == (400 if allowed else 200)
        assert all(call.header("x-routing-policy") is None for call in replica.calls)


async def test_a_session_stays_by_header_or_user(planes: MakePlane) -> None:
    plane = await planes(rules=ModelRules("session"), session_header=b"x-session-id")
    replicas = [await plane.add(answer_ok) for _ in range(4)]
    plane.route(*replicas)
    for _ in range(5):
        await plane.post(chat("hi", user="somebody"), headers="x-session-id: s1\r\n")
    assert sorted(len(replica.calls) for replica in replicas) == [0, 0, 0, 5]
    for _ in range(5):
        await plane.post(chat("hi", user="somebody"))
    assert sum(1 for replica in replicas if replica.calls) <= 2


async def test_an_alias_is_asked_for_by_its_parts_name(planes: MakePlane) -> None:
    rules = ModelRules(rules={"fast": ModelRule(split={"m": 1}), "gone": ModelRule(fallbacks=("m",))})
    plane = await planes(rules=rules)
    replica = await plane.add(answer_ok)
    plane.route(replica)
    for name in ("fast", "gone"):
        body = chat("hi", model=name, tools=[{"model": name}])
        assert (await plane.post(body)).status == 200
        got = json.loads(replica.calls[-1].body)
        assert got == {**json.loads(body), "model": "m"}
    assert (await plane.post(chat("hi", model="unknown"))).status == 503
    plane.engine.set_table(Table(9))
    reply = await plane.post(chat("hi", model="fast"))
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (503, "model_not_found")


def test_the_size_is_known_to_policies_that_read_no_prompts() -> None:
    body = chat(LONG)
    assert read_json(body, want_text=False, forwarded=None).prompt_bytes == len(body)
    nothing = PolicyNeeds(lambda _model, _policy: False, None, None, sessions=True)
    assert read_json(body, want_text=False, forwarded=None, needs=nothing).prompt_bytes == len(body)


async def test_least_loaded_sees_how_much_waits(planes: MakePlane) -> None:
    released = asyncio.Event()

    async def late(call: Call) -> None:
        await released.wait()
        await answer_ok(call)

    plane = await planes(rules=ModelRules("least_loaded"))
    replicas = [await plane.add(late), await plane.add(late)]
    plane.route(*replicas)
    large = asyncio.create_task(plane.post(chat(LONG)))
    await until(lambda: any(replica.calls for replica in replicas))
    small = [asyncio.create_task(plane.post(chat("hi"))) for _ in range(3)]
    await until(lambda: sum(len(replica.calls) for replica in replicas) == 4)
    assert sorted(len(replica.calls) for replica in replicas) == [1, 3]
    released.set()
    assert [reply.status for reply in await asyncio.gather(large, *small)] == [200] * 4


def test_only_the_name_changes_in_a_body() -> None:
    body = b'{"a": 1.50, "model" : "x", "messages":[{"content":"\\u00e9 \\"model\\": \\"x\\""}]}'
    changed = with_model(body, "y")
    assert json.loads(changed) == {**json.loads(body), "model": "y"}
    assert b"1.50" in changed
    assert b"\\u00e9" in changed


def test_tools_and_system_come_before_the_messages() -> None:
    more_or_less: list[dict[str, Any]] = [{}, {"tools": [{"name": "a" * 600}]}, {"tools": [{"name": "b" * 600}]}]
    plain_one, with_tools, other_tools = (
        read_json(chat(LONG, **more), want_text=False, forwarded=None, needs=WANTS) for more in more_or_less
    )
    assert with_tools.prompt_bytes > plain_one.prompt_bytes
    assert not set(with_tools.blocks) & set(other_tools.blocks)
    other_model = read_json(chat(LONG, model="n"), want_text=False, forwarded=None, needs=WANTS)
    assert not set(plain_one.blocks) & set(other_model.blocks)


def settings(**data: object) -> RouterSettings:
    return build(RouterSettings, [Layer("test", data, {})])


def test_rules_come_from_the_settings() -> None:
    made = settings(policy="least_loaded", models={"fast": {"split": {"a": 9, "b": 1}}, "x-*": {"policy": "session"}})
    rules = made.model_rules()
    assert (rules.policy_of("x-1"), rules.policy_of("y"), rules.aliases()) == ("session", "least_loaded", ["fast"])
    again = RouterSettings.model_validate(made.model_dump(mode="json"))
    assert again.model_rules().rules == rules.rules
    assert made.retired() == {}


def test_settings_of_an_older_version_are_taken_and_warned_of() -> None:
    made = settings(
        policy="two_choices", prefix_blocks=5000, models={"x": {"policy": "prefix"}, "y": {"policy": "cost"}}
    )
    rules = made.model_rules()
    assert (rules.policy_of("x"), rules.policy_of("y"), rules.policy_of(None)) == ("cost", "cost", "least_loaded")
    told = made.retired()
    assert told.keys() == {"policy", "models.x.policy", "prefix_blocks"}
    assert "'two_choices'" in told["policy"]
    assert "'least_loaded'" in told["policy"]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"policy": "best"}, "'policy': must be one of cost"),
        ({"models": {"a": {"policy": "best"}}}, "models.a.policy: must be one of"),
        ({"models": {"a": {"polcy": "cost"}}}, "polcy"),
    ],
)
def test_settings_that_cannot_be_followed_are_named(data: dict[str, object], fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        settings(**data)
