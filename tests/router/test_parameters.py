"""Parameters of a model's requests: defaults, forced values, members taken out; in bytes, on the wire, in the settings."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from common.settings import Layer, SettingsError, build, file_layer
from router.policy.models import ModelRule, ModelRules
from router.policy.parameters import NoObject, Parameters, differing, parameters
from router.settings import RouterSettings
from tests.router.conftest import MakePlane
from tests.router.fakes import Call, Plane, plain


def made(**given: Any) -> Parameters:
    one = parameters(given.get("defaults", {}), given.get("forced", {}), given.get("removed", ()))
    assert one is not None
    return one


@pytest.mark.parametrize(
    ("given", "body", "sent"),
    [
        ({"defaults": {"t": 0.5}}, b'{"model":"m"}', b'{"model":"m","t":0.5}'),
        ({"defaults": {"t": 0.5}}, b'{"t" : 0.1,\n"a":1}', b'{"t" : 0.1,\n"a":1}'),
        ({"defaults": {"t": 0.5}}, b'{"t": null}', b'{"t":0.5}'),
        ({"defaults": {"k.x": 1}}, b'{"k":{"y": 2}}', b'{"k":{"y":2,"x":1}}'),
        ({"defaults": {"k.x": 1}}, b'{"k":{"x": 2}}', b'{"k":{"x": 2}}'),
        ({"defaults": {"k.x.z": 1}}, b"{}", b'{"k":{"x":{"z":1}}}'),
        ({"defaults": {"k.x": 1}}, b'{"k":"text"}', b'{"k":"text"}'),
        ({"forced": {"t": 0.5}}, b'{"t":1,"a": [1,  2.50]}', b'{"t":0.5,"a":[1,  2.50]}'),
        ({"forced": {"t": 0.5}}, b'{"t":1,"t":0.5}', b'{"t":0.5}'),
        ({"forced": {"t": 0.5}}, b'{"\\u0074":1}', b'{"t":0.5}'),
        ({"forced": {"k.x": False}}, b'{"k":null}', b'{"k":{"x":false}}'),
        ({"forced": {"k": {"x": 1}}}, b'{"k":{"y":1}}', b'{"k":{"x":1}}'),
        ({"removed": ["t", "k.x"]}, b'{"t":1,"k":{"x":1,"y":2},"t":2}', b'{"k":{"y":2}}'),
        ({"removed": ["k.x"]}, b'{"k":[1]}', b'{"k":[1]}'),
        ({"removed": ["k.x"]}, b'{"k":{"x":1},"k":{"y":2}}', b'{"k":{"y":2}}'),
    ],
)
def test_a_body_gets_its_parameters_and_keeps_the_rest(given: dict[str, Any], body: bytes, sent: bytes) -> None:
    assert made(**given).apply(body) == sent


def test_a_value_is_not_forced_into_what_is_no_object() -> None:
    with pytest.raises(NoObject, match="'k' must be an object"):
        made(forced={"k.x": 1}).apply(b'{"k":"text"}')


def test_what_differs_is_named() -> None:
    assert differing(b'{"a":1,"b":2,"c":3}', b'{"a":1,"b":3,"d":4}') == ["b", "c", "d"]


FOUND = {
    "defaults": {"max_tokens": 64},
    "forced": {"chat_template_kwargs.enable_thinking": False},
    "removed": ["logit_bias"],
}


async def plane_with(planes: MakePlane, **rules: ModelRule) -> tuple[Plane, list[Call]]:
    async def answer(call: Call) -> None:
        await call.send(plain(b'{"id":"1","object":"chat.completion","created":1,"model":"m","choices":[]}'))

    plane = await planes(rules=ModelRules(rules=rules))
    replica = await plane.add(answer)
    plane.route(replica, models=("m", "other"))
    return plane, replica.calls


@pytest.mark.parametrize("size", [10, 1000, 256 << 10])
async def test_the_replica_gets_the_changed_body_and_its_length(planes: MakePlane, size: int) -> None:
    plane, calls = await plane_with(planes, m=ModelRule(parameters=made(**FOUND)))
    messages = [{"role": "user", "content": "é" * size}]
    body = json.dumps({"model": "m", "messages": messages, "logit_bias": {"1": 2}}, ensure_ascii=False).encode()
    assert (await plane.post(body)).status == 200
    [call] = calls
    assert call.header("content-length") == str(len(call.body))
    assert json.loads(call.body) == {
        "model": "m",
        "messages": messages,
        "max_tokens": 64,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert json.dumps(messages, ensure_ascii=False).encode() in call.body  # byte for byte
    await plane.post(b'{ "model" : "other" }')
    assert calls[-1].body == b'{ "model" : "other" }'


async def test_they_are_for_calls_that_an_engine_answers_and_for_json_alone(planes: MakePlane) -> None:
    plane, calls = await plane_with(planes, m=ModelRule(parameters=made(**FOUND)))
    await plane.post(b'{"model": "m", "prompt": "x"}', "/tokenize")
    assert calls[-1].body == b'{"model": "m", "prompt": "x"}'
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
    head = "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: r\r\nconnection: close\r\n"
    kind = "content-type: multipart/form-data; boundary=b\r\n"
    await plane.send(f"{head}{kind}content-length: {len(form)}\r\n\r\n".encode() + form)
    assert calls[-1].body == form


async def test_an_aliass_parameters_come_before_its_parts(planes: MakePlane) -> None:
    quick = ModelRule(split={"m": 1}, parameters=made(defaults={"a": 1}, forced={"b": 1}))
    plane, calls = await plane_with(
        planes, quick=quick, m=ModelRule(parameters=made(defaults={"a": 2, "c": 2}, forced={"b": 2}))
    )
    await plane.post(b'{"model":"quick"}')
    assert json.loads(calls[-1].body) == {"model": "m", "a": 1, "b": 2, "c": 2}


async def test_routing_sees_what_the_replica_will_see(planes: MakePlane) -> None:
    plane, calls = await plane_with(planes, m=ModelRule(parameters=made(forced={"n": 1, "prompt_cache_key": "k"})))
    said = json.loads((await plane.post(b'{"model":"m","n":3}', "/admin/explain")).body)
    assert (said["affinity"], said["changed"]) == ("key:k", ["n", "prompt_cache_key"])
    assert not calls


async def test_a_forced_value_without_a_place_is_refused(planes: MakePlane) -> None:
    plane, calls = await plane_with(planes, m=ModelRule(parameters=made(**FOUND)))
    reply = await plane.post(b'{"model":"m","chat_template_kwargs":"none"}')
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (400, "invalid_body")
    assert "'chat_template_kwargs' must be an object" in json.loads(reply.body)["error"]["message"]
    assert not calls


async def test_the_official_client_is_served_with_parameters_it_did_not_give(planes: MakePlane) -> None:
    plane, calls = await plane_with(planes, m=ModelRule(parameters=made(**FOUND)))
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{plane.port}/v1", api_key="k", max_retries=0) as client:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert json.loads(calls[-1].body)["max_tokens"] == 64


TOML = """\
[models.m]
parameters.defaults = { max_tokens = 64 }
parameters.forced = { "chat_template_kwargs.enable_thinking" = false, response_format = { type = "text" } }
parameters.removed = ["logit_bias"]
"""


def test_they_come_from_the_settings_and_reach_the_workers_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text(TOML)
    settings = build(RouterSettings, [file_layer(path)])
    rule = settings.model_rules().find("m")
    assert rule.parameters is not None
    assert json.loads(rule.parameters.apply(b'{"logit_bias":1}')) == {
        "max_tokens": 64,
        "chat_template_kwargs": {"enable_thinking": False},
        "response_format": {"type": "text"},
    }
    again = RouterSettings.model_validate_json(settings.model_dump_json())
    assert again.model_rules().rules == settings.model_rules().rules
    assert settings.model_rules().find("other").parameters is None


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"forced": {"model": "x"}}, "'model' is the client's and stays"),
        ({"forced": {"Model": "x"}}, "'Model' is the client's"),
        ({"defaults": {"stream": True}}, "'stream' is the client's"),
        ({"removed": ["messages"]}, "'messages' is the client's"),
        ({"defaults": {"a": 1}, "removed": ["a"]}, "'a' and 'a' are about the same member"),
        ({"defaults": {"a": {}}, "forced": {"a.b": 1}}, "'a' and 'a.b' are about the same member"),
        ({"forced": {"a..b": 1}}, "single dots"),
        ({"forced": {"": 1}}, "single dots"),
        ({"forced": {"a": float("nan")}}, "'a' must have a value that JSON can say"),
        ({"force": {"a": 1}}, "unknown key 'models.m.parameters.force'"),
        ({"forced": ["a"]}, "models.m.parameters.forced"),
        ({"removed": {"a": 1}}, "models.m.parameters.removed"),
    ],
)
def test_parameters_that_cannot_be_are_named(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build(RouterSettings, [Layer("router.toml", {"models": {"m": {"parameters": given}}}, {})])
    assert str(caught.value).startswith("router.toml: ")
    assert "models.m.parameters" in str(caught.value)
    assert fault in str(caught.value)
