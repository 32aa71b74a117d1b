from collections.abc import Iterable
from typing import Any

from msgspec import UNSET

from common.wire.record import Registration
from common.wire.registry import Peer, TargetGroup
from registry.core.model import Instance
from registry.views.targets import target, watching


def targets(instances: Iterable[Instance], routers: Iterable[Peer], own: str) -> list[TargetGroup]:
    return [*watching(routers, own), *filter(None, map(target, instances))]


def instance(name: str, kind: str, *, instance_id: str | None = "i", **changes: Any) -> Instance:
    metadata = {"type": kind, **changes.pop("metadata", {})}
    known = {"host": "10.0.0.1", "port": 9000, "hostname": "node-1", "url": "http://10.0.0.1:9000", "status": "running"}
    return Instance(
        Registration(name=name, instance_id=instance_id or UNSET, metadata=metadata, **{**known, **changes}), 1
    )


def test_every_part_of_the_fleet_is_a_target_of_its_job() -> None:
    found = targets(
        [
            instance("r1", "vLLM"),
            instance("node-1", "node-agent", metadata={"metrics_path": "/m"}),
        ],
        [Peer("router-a", "http://10.0.0.1:9000")],
        "registry:18000",
    )
    assert [(group.labels["job"], group.labels["service"], group.targets) for group in found] == [
        ("registry", "registry", ["registry:18000"]),
        ("router", "router-a", ["10.0.0.1:9000"]),
        ("babysitter", "r1", ["10.0.0.1:9000"]),
        ("agent", "node-1", ["10.0.0.1:9000"]),
    ]


def test_a_server_is_one_only_when_its_record_says_where_its_metrics_are() -> None:
    told = instance("s1", "openai-api", metadata={"metrics_path": "/metrics"})
    (_, group) = targets(
        [
            told,
            instance("s2", "openai-api"),
            instance("node-2", "node-agent"),
            instance("s3", "openai-api", metadata={"metrics_path": 5}),
            instance("s4", "openai-api", metadata={"metrics_path": "http://elsewhere/"}),
        ],
        [],
        "me:1",
    )
    assert group.labels == {"job": "server", "service": "s1", "node": "node-1", "__metrics_path__": "/metrics"}


def test_a_babysitter_of_the_old_kind_has_no_metrics() -> None:
    assert len(targets([instance("old", "InfiniLM", instance_id=None)], [], "me:1")) == 1


def test_addresses_and_schemes_are_as_prometheus_wants_them() -> None:
    babysitter = instance("r", "vLLM", host="fd00::1", url="https://[fd00::1]:9000")
    routers = [Peer("a", "https://llm.example"), Peer("b", "http://[fd00::2]:8000")]
    groups = targets([babysitter], routers, "me:1")[1:]
    assert [group.targets for group in groups] == [["llm.example"], ["[fd00::2]:8000"], ["[fd00::1]:9000"]]
    assert [group.labels.get("__scheme__") for group in groups] == ["https", None, "https"]
