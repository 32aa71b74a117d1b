from collections.abc import Iterable

import msgspec
import pytest

from common import __version__
from common.discovery.replica import select
from common.wire.record import Registration
from common.wire.replica import ReplicaInfo
from registry.core.model import Instance
from registry.core.report import make_report
from registry.fleet.index import FleetIndex
from tests.registry.conftest import Client, ours

INFO_FIELDS = (
    "replica_id server_mode model_name status display_status endpoint base_url host port multibox namespace workdir"
    " venv_path compile_wsjob execute_wsjob created_at updated_at ready_at error_message request_id diagnostics metadata"
)


def reported(name: str, *, stale: bool = False, **report: object) -> Instance:
    said = Registration(
        name=name, host="10.0.0.1", port=8000, hostname="node", url="http://10.0.0.1:8000", status="running"
    )
    return Instance(said, generation=1, stale=stale, report=make_report(report) if report else None)


def replica_infos(instances: Iterable[Instance]) -> dict[str, ReplicaInfo]:
    index = FleetIndex()
    index.begin(instances)
    return {info.replica_id: info for info in index.infos()}


def test_info_has_every_field_of_the_contract() -> None:
    infos = replica_infos([reported("a", replica_id="abc", status="ready", compile_wsjob=["wsjob-1"])])
    assert set(INFO_FIELDS.split()) <= msgspec.to_builtins(infos["abc"]).keys()
    assert infos["abc"].endpoint == "NA"
    assert infos["abc"].compile_wsjob == ["wsjob-1"]
    assert infos["abc"].metadata == {"service": "a", "hostname": "node", "stale": False, "draining": False}


def test_replica_with_two_records_is_one_and_the_living_one_counts() -> None:
    old = reported("a", stale=True, replica_id="x", status="ready", updated_at="2026-01-02")
    new = reported("a-server", replica_id="x", status="unhealthy", updated_at="2026-01-01")
    for records in ([old, new], [new, old]):
        infos = replica_infos([*records, reported("none"), reported("odd", replica_id=7)])
        assert list(infos) == ["x"]
        assert infos["x"].status == "unhealthy"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["a", "b", "c"]),
        ({"status": "ready"}, ["a"]),
        ({"model_name": "m1"}, ["a"]),
        ({"model_name": "served"}, ["b"]),
        ({"status": "ready", "server_mode": "replica"}, []),
        ({"server_mode": "replica"}, ["b", "c"]),
        ({"server_mode": "inference"}, ["b", "c"]),
        ({"server_mode": "compile"}, []),
    ],
)
def test_select_needs_every_filter_to_match(filters: dict[str, str], expected: list[str]) -> None:
    infos = replica_infos(
        [
            reported("1", replica_id="a", status="ready", model_name="m1"),
            reported("2", replica_id="b", status="failed", models=["served"], server_mode="replica"),
            reported("3", replica_id="c", server_mode="inference"),
        ]
    )
    assert [info.replica_id for info in select(infos.values(), filters)] == expected


async def test_replicas_over_http(client: Client) -> None:
    await client.post("/services", json=ours())
    beat = {"replica_id": "abc123abc123", "status": "ready", "models": ["m"], "instance_id": "i-1", "incarnation": 1}
    await client.post("/services/svc/heartbeat", json=beat)
    for path in ("/api/v1/replicas", "/v1/replicas", "/api/v1/replicas?status=ready&model_name=m"):
        async with client.get(path) as answer:
            content = await answer.json()
            assert answer.status == 200
            assert (content["total"], content["replicas"][0]["replica_id"]) == (1, "abc123abc123")
        assert int(answer.headers["X-Index"]) > 0
    async with client.get("/v1/replicas?index=0&wait=30s") as answer:
        assert answer.status == 200  # there is news already
    async with client.get("/v1/replicas?index=x") as answer:
        assert answer.status == 400
    async with client.get("/api/v1/replicas?status=failed") as answer:
        assert (await answer.json())["total"] == 0
    async with client.get("/api/v1/replicas/abc123abc123") as answer:
        content = await answer.json()
        assert content.keys() == {"replica_id", "status", "info"}
        assert (content["status"], content["info"]["models"]) == ("ready", ["m"])
    async with client.get("/api/v1/replicas/none") as answer:
        assert answer.status == 404
    async with client.get("/api/v1/health") as answer:
        content = await answer.json()
        assert content.pop("timestamp").endswith("Z")
        assert content == {
            "status": "healthy",
            "version": __version__,
            "replicas_total": 1,
            "replicas_ready": 1,
        }
    async with client.get("/health") as answer:
        content = await answer.json()
        assert (content["registry"], content["version"]) == ("running", __version__)
        assert (content["replicas_total"], content["replicas_ready"]) == (1, 1)
