"""Replicas by their id and agents by their node, kept by a listener of the writer: no call reads every report. PURE.

A replica may report with two records, its babysitter's and its server's: a record whose lease holds counts more than one
whose lease ended, the later report more than the earlier, the first of two that are alike. A node's agent speaks for a
replica that has no babysitter to do so, not yet or not any more.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import UNSET

from common.wire.deployment import REQUEST_PREFIX
from common.wire.replica import ReplicaInfo
from common.wire.words import ReplicaStatus
from registry.core.catalogue import Revised
from registry.core.model import Instance, Report, Upsert
from registry.fleet.placement import NodeAgent
from registry.fleet.replicas import (
    agent_accelerators,
    agent_counts,
    agent_node,
    agent_replicas,
    agent_templates,
    info_of,
    read_report,
)


@dataclass(slots=True)
class _Teller:
    """A record, and what it tells of replicas, by their id: a babysitter of its own, an agent of some of its node's."""

    instance: Instance
    replicas: Mapping[str, Report | ReplicaInfo]

    def rank(self, replica_id: str) -> tuple[bool, str]:
        """The higher counts."""
        return not self.instance.stale, self.replicas[replica_id].updated_at or ""


@dataclass(slots=True)
class FleetIndex:
    """What heartbeats tell of the fleet."""

    _tellers: dict[str, _Teller] = field(default_factory=dict)
    _by_replica: dict[str, dict[str, _Teller]] = field(default_factory=dict)
    _ready: set[str] = field(default_factory=set)
    _agents: dict[str, NodeAgent] = field(default_factory=dict)
    _asked_for: set[str] = field(default_factory=set)
    _request_of: dict[str, str] = field(default_factory=dict)
    """By replica, the create request that made it; `_made_by` is the same the other way round."""
    _made_by: dict[str, set[str]] = field(default_factory=dict)

    def begin(self, instances: Iterable[Instance]) -> None:
        """Take in what was loaded."""
        for instance in instances:
            self._put(instance)

    def notice(self, revised: Sequence[Revised]) -> None:
        """A listener of the writer."""
        for item in revised:
            if isinstance(item.change, Upsert):
                self._put(item.change.instance)
            else:
                self._remove(item.change.name)

    # Reading.

    def __len__(self) -> int:
        return len(self._by_replica)

    def __contains__(self, replica_id: object) -> bool:
        return replica_id in self._by_replica

    @property
    def ready(self) -> int:
        """How many replicas are ready."""
        return len(self._ready)

    @property
    def agents(self) -> list[NodeAgent]:
        """Every node's agent, by the name of its node."""
        return sorted(self._agents.values(), key=lambda agent: agent.node)

    def get(self, replica_id: str) -> ReplicaInfo | None:
        """One replica; reads its report and no other."""
        if replica_id not in self._by_replica:
            return None
        teller = self._best(replica_id)
        replica = teller.replicas[replica_id]
        return info_of(teller.instance, read_report(replica) if isinstance(replica, Report) else replica)

    def infos(self) -> Iterator[ReplicaInfo]:
        """Every replica, by its id; reads every report."""
        for replica_id in sorted(self._by_replica):
            info = self.get(replica_id)
            if info is not None:
                yield info

    def of_request(self, request_id: str) -> Iterator[ReplicaInfo]:
        """The replicas that a create request made; reads no other report."""
        for replica_id in sorted(self._made_by.get(request_id, ())):
            info = self.get(replica_id)
            if info is not None:
                yield info

    def of_deployments(self) -> Iterator[ReplicaInfo]:
        """The replicas that deployments asked for; reads no other report."""
        for replica_id in sorted(self._asked_for):
            info = self.get(replica_id)
            if info is not None:
                yield info

    def records_of(self, replica_id: str) -> list[str]:
        """Names of the records that a replica has: its server's and its babysitter's."""
        return [name for name in self._by_replica.get(replica_id, ()) if name not in self._agents]

    def _best(self, replica_id: str) -> _Teller:
        tellers = self._by_replica[replica_id].values()
        return next(iter(tellers)) if len(tellers) == 1 else max(tellers, key=lambda it: it.rank(replica_id))

    # Keeping.

    def _put(self, instance: Instance) -> None:
        name, previous = instance.name, self._tellers.get(instance.name)
        replicas = self._told_by(instance, previous)
        if not replicas:
            self._remove(name, agent=False)
            return
        teller = self._tellers[name] = _Teller(instance, replicas)
        for replica_id in previous.replicas.keys() - replicas.keys() if previous else ():
            self._drop(replica_id, name)
        for replica_id in replicas:
            self._by_replica.setdefault(replica_id, {})[name] = teller
            self._judge(replica_id)

    def _told_by(self, instance: Instance, previous: _Teller | None) -> Mapping[str, Report | ReplicaInfo]:
        """What a record tells of replicas; an agent's report is read when it changes, a babysitter's never."""
        report, node = instance.report, agent_node(instance)
        if node is None:
            self._agents.pop(instance.name, None)
            return {} if report is None or report.replica_id is None else {report.replica_id: report}
        counts = agent_counts(instance)
        templates = list(agent_templates(counts))
        self._agents[instance.name] = NodeAgent(
            node,
            instance.registration.url,
            counts.replicas_live,
            counts.capacity,
            away=instance.stale,
            draining=instance.is_draining,
            labels=counts.labels,
            accelerators=tuple(agent_accelerators(instance, counts)),
            templates={it.name: it for it in templates if it.error is UNSET},
            broken_templates={it.name: it for it in templates if it.error is not UNSET},
        )
        if previous is not None and previous.instance.report == report:
            return previous.replicas
        return {replica.replica_id: replica for replica in agent_replicas(counts)}

    def _remove(self, name: str, *, agent: bool = True) -> None:
        if agent:
            self._agents.pop(name, None)
        teller = self._tellers.pop(name, None)
        for replica_id in teller.replicas if teller else ():
            self._drop(replica_id, name)

    def _drop(self, replica_id: str, name: str) -> None:
        tellers = self._by_replica[replica_id]
        del tellers[name]
        if tellers:
            self._judge(replica_id)
        else:
            del self._by_replica[replica_id]
            self._ready.discard(replica_id)
            self._note_request(replica_id, None)

    def _judge(self, replica_id: str) -> None:
        best = self._best(replica_id).replicas[replica_id]
        if best.status == ReplicaStatus.READY:
            self._ready.add(replica_id)
        else:
            self._ready.discard(replica_id)
        self._note_request(replica_id, best.request_id)

    def _note_request(self, replica_id: str, request_id: str | None) -> None:
        """Which request made it; None: nobody tells of it any more."""
        before = self._request_of.get(replica_id)
        if request_id == before:
            return
        if before is not None:
            del self._request_of[replica_id]
            self._asked_for.discard(replica_id)
            self._made_by[before].discard(replica_id)
            if not self._made_by[before]:
                del self._made_by[before]
        if request_id is not None:
            self._request_of[replica_id] = request_id
            self._made_by.setdefault(request_id, set()).add(replica_id)
            if request_id.startswith(REQUEST_PREFIX):
                self._asked_for.add(replica_id)
