"""PURE. Events of `GET /api/v1/replicas/{id}/events` (docs/agent.md). Their other data are infos, transitions and stages."""

from common.wire.base import Message
from common.wire.words import DisplayStatus, ReplicaStatus


class StatusChange(Message, frozen=True, kw_only=True):
    """`status`: one of the members has changed; `at` is when, as `ReplicaInfo.updated_at`."""

    replica_id: str
    status: ReplicaStatus
    display_status: DisplayStatus
    endpoint: str
    error_message: str | None
    stalled: bool
    late: bool
    at: str | None


class JobsChange(Message, frozen=True, kw_only=True):
    """`jobs`: a job was added."""

    compile_wsjob: list[str]
    execute_wsjob: list[str]


class LogLine(Message, frozen=True, kw_only=True):
    """`log`: a line of one of the streams that were asked for."""

    stream: str
    line: str


class StreamEnd(Message, frozen=True, kw_only=True):
    """`end`: nothing follows, for this reason."""

    replica_id: str
    status: ReplicaStatus
    reason: str
