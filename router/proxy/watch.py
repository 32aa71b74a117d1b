"""What a worker does about replicas that stand still: it passes over them, sets them aside, and takes them back.

A replica that is late (`silence.py`) gets no request from this worker while another replica is on time; every five seconds
one request tries it again. When several requests wait there, counted over all workers, it is set aside for everybody, as any
outlier is.
"""

from collections.abc import Sequence
from typing import Final

from router.counters import EJECTIONS, HEARD_AT_US, STUCK, SharedCounters
from router.model import Eligibility, Endpoint, Table
from router.outlier import Outliers
from router.policy.choose import Chooser
from router.silence import Kind, Silence

SEVERAL: Final = 3
"""Requests that wait at once."""
TRY_AGAIN_S: Final = 5.0


class StallWatch:
    """One worker's.

    Args:
        counters: Tells the other workers how many wait, and when bytes came.
        chooser: Passes over those that are late.
        outliers: Sets aside.
        workers: Of this router.
    """

    def __init__(self, counters: SharedCounters, chooser: Chooser, outliers: Outliers, workers: int) -> None:
        self.silence = Silence()
        self._counters = counters
        self._chooser = chooser
        self._outliers = outliers
        self._alone = workers == 1
        self._table = Table(0)
        self._by_id: dict[str, Endpoint] = {}
        self.slow: frozenset[str] = frozenset()
        """Ids of those to be passed over for another reason (`streams/hedging.py`)."""
        self._stuck: dict[str, tuple[Endpoint, float]] = {}
        """Who stood still at the last look, and since when that is known."""

    def set_table(self, table: Table) -> None:
        """Forget what concerns endpoints that are gone."""
        self._table = table
        self._by_id = {endpoint.id: endpoint for endpoint in table.endpoints}
        self.silence.forget_all_but(set(self._by_id))

    def has_changed(self, endpoint: Endpoint) -> bool:
        """True when the master says something else of `endpoint` than when it was chosen, or nothing any more."""
        current = self._by_id.get(endpoint.id)
        return current is None or current.eligibility is not endpoint.eligibility

    def drains(self, endpoint: Endpoint) -> bool:
        """True when the master says by now that `endpoint` is leaving."""
        current = self._by_id.get(endpoint.id)
        return current is not None and current.eligibility is Eligibility.DRAINING

    def answered(self, endpoint: Endpoint, kind: Kind, wait_s: float, now: float) -> None:
        """The first byte of an answer came."""
        if self.silence.answered(endpoint.id, kind, wait_s, now):
            self._chooser.passed_over = self._chooser.passed_over - {endpoint.id}
            self._outliers.take_back(endpoint, now)

    def waits(self, endpoint: Endpoint, kind: Kind, since: float, prompt_bytes: int) -> None:
        """A request waits for its first byte since a moment."""
        work_s = prompt_bytes * self._chooser.fleet.view(endpoint).s_per_byte
        self.silence.waits(endpoint.id, kind, since, work_s)

    def judge(self, now: float) -> None:
        """See who stands still; to be called after all that wait have said so."""
        silence, counters = self.silence, self._counters
        if not self._alone:
            self._share_what_was_heard()
        before, self._stuck = self._stuck, {}
        passed_over = []
        for name in silence.judge(now):
            endpoint, silent = self._by_id.get(name), silence.replicas[name]
            if endpoint is None:
                continue
            self._stuck[name] = before.get(name, (endpoint, now))
            counters.put(endpoint.slot, STUCK, silent.waiting)
            several = counters.total(endpoint.slot, STUCK) >= SEVERAL
            if several and self._outliers.set_aside(endpoint, self._peers(endpoint), now):
                counters.add(endpoint.slot, EJECTIONS)
            elif now - silent.newest < TRY_AGAIN_S and self._outliers.admits(endpoint, now):
                passed_over.append(name)
        self._chooser.passed_over = frozenset(passed_over) | self.slow
        for name, (endpoint, since) in before.items():
            if name not in self._stuck:
                counters.put(endpoint.slot, STUCK, 0)
                record = silence.replicas.get(name)  # none for one that left, came back since, and was not asked yet
                if record is not None and record.heard_at >= since:
                    self._outliers.take_back(endpoint, now)

    def _peers(self, endpoint: Endpoint) -> Sequence[Endpoint]:
        """Those that could stand in for `endpoint`."""
        return self._table.by_model[endpoint.models[0]] if endpoint.models else self._table.endpoints

    def _share_what_was_heard(self) -> None:
        counters = self._counters
        for name, silent in self.silence.replicas.items():
            endpoint = self._by_id.get(name)
            if endpoint is None:
                continue
            if silent.heard_at:
                counters.put(endpoint.slot, HEARD_AT_US, int(silent.heard_at * 1e6))
            if silent.waiting:
                self.silence.heard(name, counters.latest_elsewhere(endpoint.slot, HEARD_AT_US) / 1e6)
