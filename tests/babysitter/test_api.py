"""The routes at port + 1, each with its errors."""

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp.test_utils import TestClient, TestServer

from babysitter import events as ev
from babysitter.api import NO_CHANGE, ROUTES, ApiContext, make_app
from babysitter.engine_metrics import Work
from babysitter.lifecycle import ReplicaState
from babysitter.memory import Memory
from babysitter.server_log import ServerLog
from babysitter.supervisor import Supervisor
from babysitter.view import View
from common.http.audit import AuditLog
from common.wire.replica import Stage, Transition
from common.wire.words import StageState
from tests.audits import check_table, lines
from tests.babysitter.views import MODELS, view_of

Client = TestClient[Any, Any]


class StillSupervisor:
    """Shows one picture."""

    def __init__(self) -> None:
        self.picture = view_of()
        self.memory = Memory()
        self.state = ReplicaState.READY
        self.spec = SimpleNamespace(name="r1", deployer=None, peers=None)
        self.told: list[ev.Event] = []
        self.log = ServerLog(Path("/nowhere/out"), Path("/nowhere/err"))

    def view(self) -> View:
        return self.picture

    def tell(self, event: ev.Event) -> None:
        self.told.append(event)

    async def stop_for_good(self, reason: str, *, force: bool) -> None:
        self.told.append(ev.StopRequested(reason, force=force))


@pytest.fixture
def supervisor() -> StillSupervisor:
    return StillSupervisor()


@pytest.fixture
async def client(supervisor: StillSupervisor) -> AsyncIterator[Client]:
    source = ApiContext(supervisor=cast("Supervisor", supervisor), router_url="http://r", started=0.0)
    async with TestClient(TestServer(make_app(source))) as made:
        yield made


async def test_health_is_200_whatever_the_server_does(client: Client, supervisor: StillSupervisor) -> None:
    for state in ReplicaState:
        supervisor.picture = view_of(state)
        answer = await client.get("/health")
        assert answer.status == 200
        assert (await answer.json())["status"] == (
            "healthy" if state is ReplicaState.READY else supervisor.picture.status
        )


@pytest.mark.parametrize("path", ["/models", "/v1/models"])
async def test_models_are_the_servers(client: Client, path: str) -> None:
    answer = await client.get(path)
    assert await answer.json() == {"object": "list", "data": [MODELS[0]]}


async def test_models_are_503_until_ready(client: Client, supervisor: StillSupervisor) -> None:
    supervisor.picture = view_of(ReplicaState.WAITING_FOR_READY)
    answer = await client.get("/models")
    assert answer.status == 503
    assert await answer.json() == {"error": "the server is not ready: waiting_for_ready"}


async def test_info_shows_the_report(client: Client) -> None:
    told = await (await client.get("/info")).json()
    assert told["replica"]["replica_id"] == "r1"
    assert told["router_url"] == "http://r"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/health", 405), ("GET", "/nothing", 404), ("DELETE", "/info", 405)]
)
async def test_anything_else_is_a_json_error(client: Client, method: str, path: str, status: int) -> None:
    answer = await client.request(method, path)
    assert answer.status == status
    assert "error" in await answer.json()


@pytest.fixture
def log_file(tmp_path: Path, supervisor: StillSupervisor) -> Path:
    supervisor.log = ServerLog(tmp_path / "out", tmp_path / "err")
    supervisor.log.stdout.write_text("".join(f"line {n}\n" for n in range(300)))
    return supervisor.log.stdout


async def test_logs_show_the_last_lines(client: Client, log_file: Path) -> None:
    assert log_file.exists()
    told = await (await client.get("/logs", params={"tail": 2})).text()
    assert told == "line 298\nline 299\n"
    assert len((await (await client.get("/logs")).text()).splitlines()) == 100
    assert await (await client.get("/logs", params={"stream": "stderr"})).text() == ""


async def test_logs_right_after_a_rotation_give_the_lines_before_it_W32(client: Client, log_file: Path) -> None:
    log_file.rename(log_file.with_name(f"{log_file.name}.1"))
    log_file.write_text("new\n")
    told = (await (await client.get("/logs", params={"tail": 2})).text()).splitlines()
    assert (len(told), told[1]) == (2, "new")
    log_file.write_text("")
    assert len((await (await client.get("/logs")).text()).splitlines()) == 100


async def test_logs_are_followed_through_a_rotation(client: Client, log_file: Path) -> None:
    answer = await client.get("/logs", params={"tail": 1, "follow": 1})
    assert await answer.content.readline() == b"line 299\n"
    with log_file.open("a") as file:
        file.write("new\n")
    assert await answer.content.readline() == b"new\n"
    log_file.write_text("cut\n")
    assert await answer.content.readline() == b"cut\n"
    answer.close()


@pytest.mark.parametrize(
    ("query", "field"), [({"stream": "x"}, "stream"), ({"tail": "-1"}, "tail"), ({"tail": "x"}, "tail")]
)
async def test_wrong_query_is_422_naming_the_field(client: Client, query: dict[str, str], field: str) -> None:
    answer = await client.get("/logs", params=query)
    assert answer.status == 422
    assert field in (await answer.json())["error"]


async def test_timeline_shows_transitions_and_jobs(client: Client, supervisor: StillSupervisor) -> None:
    supervisor.memory.remember(Transition(at="t", before="starting", after="ready", cause="answers", lasted_s=1.5))
    told = await (await client.get("/timeline")).json()
    entry = {"at": "t", "from": "starting", "to": "ready", "cause": "answers", "lasted_s": 1.5}
    assert told["transitions"] == [entry]
    assert set(told) == {"name", "state", "transitions", "stages", "jobs"}


@pytest.mark.parametrize("token", [None, "t" * 40])
async def test_beyond_the_contract_a_token_is_needed_off_the_loopback(
    supervisor: StillSupervisor, token: str | None
) -> None:
    source = ApiContext(cast("Supervisor", supervisor), None, 0.0, guarded=True, token=token)
    async with TestClient(TestServer(make_app(source))) as client:
        for path in ("/health", "/models", "/info", "/metrics"):
            assert (await client.get(path)).status == 200
        headers = {"Authorization": f"Bearer {token}"}
        assert (await client.get("/timeline")).status == 401
        assert (await client.get("/timeline", headers={"Authorization": "Bearer wrong"})).status == 401
        assert (await client.get("/timeline", headers=headers)).status == (401 if token is None else 200)


@pytest.mark.parametrize(("body", "force"), [(None, False), ({}, False), ({"force": True}, True)])
async def test_stop_is_told_to_the_machine(
    client: Client,
    supervisor: StillSupervisor,
    body: dict[str, bool] | None,
    force: bool,  # noqa: FBT001 - a row
) -> None:
    answer = await client.post("/stop", json=body) if body is not None else await client.post("/stop")
    assert answer.status == 202
    assert supervisor.told == [ev.StopRequested("stopped by a call", force=force)]


@pytest.mark.parametrize("body", [{"force": "yes"}, {"forse": True}, []])
async def test_stop_with_nonsense_changes_nothing(client: Client, supervisor: StillSupervisor, body: Any) -> None:
    answer = await client.post("/stop", json=body)
    assert answer.status in (400, 422)
    assert supervisor.told == []


async def test_retry_is_for_failed_replicas(client: Client, supervisor: StillSupervisor) -> None:
    assert (await client.post("/retry")).status == 409
    supervisor.state = ReplicaState.FAILED
    assert (await client.post("/retry")).status == 202
    assert supervisor.told == [ev.Retry()]


async def test_pages_of_a_browser_change_nothing(client: Client, supervisor: StillSupervisor) -> None:
    answer = await client.post("/stop", headers={"Origin": "http://evil.example"})
    assert answer.status == 403
    assert supervisor.told == []


async def test_description_names_the_call_and_every_member_of_its_answer(client: Client) -> None:
    answer = await client.get("/openapi.json")
    document = await answer.json()
    assert {(method, path) for path, calls in document["paths"].items() for method in calls} == {
        (route.method.lower(), route.path) for route in ROUTES
    }
    schemas = document["components"]["schemas"]
    health = await (await client.get("/health")).json()
    assert set(schemas["BabysitterHealth"]["properties"]) == set(health)
    report = (await (await client.get("/info")).json())["replica"]
    assert set(report) <= set(schemas["ReplicaReport"]["properties"])


async def test_metrics_tell_state_restarts_and_stages(client: Client, supervisor: StillSupervisor) -> None:
    stages = [Stage(name="venv", state=StageState.DONE, began_at="t", took_s=2.5)]
    supervisor.picture = view_of(restarts=3, compile_jobs=("wsjob-1",), stages=stages)
    answer = await client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = (await answer.text()).splitlines()
    assert 'svc_babysitter_info{backend="vLLM",service="r1"} 1.0' in lines
    assert [line for line in lines if line.startswith("svc_babysitter_state{") and line.endswith(" 1.0")] == [
        'svc_babysitter_state{state="ready"} 1.0'
    ]
    assert "svc_babysitter_restarts_total 3.0" in lines
    assert "svc_babysitter_server_ready 1.0" in lines
    assert 'svc_babysitter_jobs{kind="compile"} 1.0' in lines
    assert [line for line in lines if line.startswith("svc_babysitter_stage_duration_seconds{")] == [
        'svc_babysitter_stage_duration_seconds{stage="venv"} 2.5'
    ]


async def test_metrics_tell_what_the_engine_does_and_nothing_of_what_it_does_not(
    client: Client, supervisor: StillSupervisor
) -> None:
    async def engine() -> dict[str, float]:
        lines = (await (await client.get("/metrics")).text()).splitlines()
        return {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines) if name.startswith("engine_")
        }

    supervisor.picture = view_of()
    assert await engine() == {}
    supervisor.picture = view_of(work=Work(2, 0, 9.0, 0.25, 100, 80))
    assert await engine() == {
        "engine_requests_running": 2,
        "engine_requests_waiting": 0,
        "engine_kv_cache_usage_ratio": 0.25,
        "engine_prefix_cache_query_tokens_total": 100,
        "engine_prefix_cache_hit_tokens_total": 80,
    }
    report = (await (await client.get("/info")).json())["replica"]
    assert (report["running"], report["prefix_hit_tokens"]) == (2, 80)
    supervisor.picture = view_of(work=Work(running=1))
    assert await engine() == {"engine_requests_running": 1}
    assert "waiting" not in (await (await client.get("/info")).json())["replica"]


async def test_every_answer_is_compact_W35(client: Client) -> None:
    assert b'"id":"m"' in await (await client.get("/models")).read()
    for path in ("/health", "/models", "/info", "/timeline", "/nowhere"):
        raw = await (await client.get(path)).read()
        assert b'": ' not in raw
        assert b', "' not in raw


async def test_health_has_an_iso_timestamp_W42(client: Client) -> None:
    told = await (await client.get("/health")).json()
    assert datetime.fromisoformat(told["timestamp"]).tzinfo is not None


async def test_stop_with_a_force_that_is_null_is_a_plain_stop_W21(client: Client, supervisor: StillSupervisor) -> None:
    assert (await client.post("/stop", json={"force": None})).status == 202
    assert supervisor.told == [ev.StopRequested("stopped by a call", force=False)]


async def test_every_call_that_changes_something_leaves_a_line_in_the_audit(
    supervisor: StillSupervisor, tmp_path: Path
) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", "babysitter r1")
    source = ApiContext(cast("Supervisor", supervisor), "http://r", 0.0, guarded=True, token="t" * 40, audit=log)
    async with TestClient(TestServer(make_app(source))) as client:
        await check_table(client, log.path, ROUTES, NO_CHANGE, Authorization=f"Bearer {'t' * 40}")
        async with client.post("/stop"):
            pass
    assert {line["who"] for line in lines(log.path)} == {"token"}
