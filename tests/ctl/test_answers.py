"""Answers of other versions, of ancestors, and of nobody we know."""

from common.wire.babysitter import BabysitterHealth
from common.wire.replica import ReplicaInfo
from common.wire.words import DisplayStatus, ReplicaStatus
from ctl import answers


def test_an_older_servers_answer_is_read_as_far_as_it_goes() -> None:
    health = answers.read(BabysitterHealth, {"status": "healthy", "restart_count": "3", "need_restart": None, "new": 1})
    assert (health.status, health.restart_count, health.error_message, health.need_restart) == ("healthy", 3, None, [])
    assert (health.stalled, health.display_status) == (False, DisplayStatus.PENDING)


def test_a_member_that_does_not_fit_costs_no_other() -> None:
    (info,) = answers.items(
        ReplicaInfo, {"replicas": [{"replica_id": "a", "models": 5, "status": "napping"}, 7]}, "replicas"
    )
    assert (info.replica_id, info.models, info.status) == ("a", [], ReplicaStatus.UNKNOWN)
    assert answers.items(ReplicaInfo, {"replicas": "none"}, "replicas") == []
    assert answers.items(ReplicaInfo, {}, "replicas") == []
