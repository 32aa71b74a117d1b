"""PURE. Which endpoints a worker sets aside because of what its own requests saw.

A connection that cannot be had ejects at once; five faults in a row eject too, and a silence that its pace does not explain
(`silence.py`), which ends with the first byte that comes. An ejection lasts 5 s times its number in a row, up to
60 s, and ends with one trial request: good, it is over; bad, the next one begins. Not more than half of a model's
endpoints are ejected at once, so at least one is always left; when all are out, the caller uses them all the same (the
panic rule). A 4xx or 429 never counts. What one client's prompts can do alone (answers of 5xx, answers cut off) counts only
when at least two clients met it, or when a request that failed so was then answered well by another endpoint: else one
client's poisonous prompt could take a fleet down (docs/faults.md A5, A19, D6).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Final

from router.model import Endpoint

FAULTS_TO_EJECT: Final = 5
CLIENTS_TO_BLAME: Final = 2
"""Clients."""
EJECT_BASE_S: Final = 5.0
EJECT_LIMIT_S: Final = 60.0
_ROUNDING_S: Final = 0.01
"""Moments pass between workers in whole milliseconds."""


class Reason(IntEnum):
    """Why an endpoint is set aside; `TOLD` says it in words."""

    UNREACHABLE = 1
    FAULTS = 2
    SERVER_ERRORS = 3
    SILENT = 4


TOLD = {
    Reason.UNREACHABLE: "no connection could be had",
    Reason.FAULTS: "several answers in a row failed",
    Reason.SERVER_ERRORS: "several answers in a row were 5xx",
    Reason.SILENT: "requests wait there, and nothing has come from it for longer than its own pace explains",
}


_ELSEWHERE: Final = ""
"""No client's name."""


class AttemptVerdict(Enum):
    """What one attempt says of its endpoint."""

    GOOD = "good"
    NEUTRAL = "neutral"
    """4xx, 429, the client went away: says nothing."""
    SERVER_ERROR = "server_error"
    """5xx: counts when several clients got one."""
    BROKEN = "broken"
    """Reset, truncated, no valid HTTP: counts as a 5xx does, for a prompt may crash what answers it."""
    FAULT = "fault"
    """No answer in time, or a connection that failed otherwise than by `REFUSED`."""
    REFUSED = "refused"
    """Nobody listens, or nobody can be reached: no connection within its time, no way there, no such name."""


_WHY = {AttemptVerdict.REFUSED: Reason.UNREACHABLE, AttemptVerdict.SERVER_ERROR: Reason.SERVER_ERRORS}


@dataclass
class _Record:
    faults: int = 0
    ejections: int = 0
    until: float = 0.0
    trial: bool = False
    why: Reason = Reason.FAULTS
    clients: set[str] = field(default_factory=set)
    """Who met answers of 5xx or broken ones; `_ELSEWHERE` among them once that was not the request's fault."""


class Outliers:
    """The ejections of one worker, by endpoint id.

    Args:
        changed: Called with (endpoint, until, why) when an ejection begins, or ends early, so that other workers learn of it.
    """

    def __init__(self, changed: Callable[[Endpoint, float, Reason], None] | None = None) -> None:
        self._records: dict[str, _Record] = {}
        self._changed = changed

    def forget_all_but(self, ids: set[str]) -> None:
        """Drop the memory of endpoints that are gone."""
        self._records = {name: record for name, record in self._records.items() if name in ids}

    @property
    def quiet(self) -> bool:
        """True while no endpoint has a fault or an ejection on record."""
        return not self._records

    def forgive(self, name: str) -> None:
        """Drop what is on record of an endpoint: by the master's own probes it is back."""
        self._records.pop(name, None)

    def admits(self, endpoint: Endpoint, now: float) -> bool:
        """True when `endpoint` may get a request; the first one after an ejection is its only trial."""
        record = self._records.get(endpoint.id)
        return record is None or not record.ejections or (now >= record.until and not record.trial)

    def adopt(self, endpoint: Endpoint, until: float, why: Reason) -> None:
        """Another worker ejected `endpoint`."""
        record = self._records.setdefault(endpoint.id, _Record())
        if until > record.until:
            record.ejections = max(1, record.ejections)
            record.until = until
            record.why = why

    def set_aside(self, endpoint: Endpoint, peers: Sequence[Endpoint], now: float) -> bool:
        """`endpoint` stands still; returns True when that ejects it. One that is ejected already is only if its trial waits too."""
        record = self._records.setdefault(endpoint.id, _Record())
        if record.ejections and (now < record.until or not record.trial):
            return False
        record.trial = False
        return self._eject(endpoint, record, peers, now, Reason.SILENT)

    def take_back(self, endpoint: Endpoint, now: float) -> None:
        """Bytes came from `endpoint`: if it was ejected for its silence, that is over."""
        record = self._records.get(endpoint.id)
        if record is not None and record.ejections and record.why is Reason.SILENT:
            del self._records[endpoint.id]
            if self._changed is not None:
                self._changed(endpoint, now, Reason.SILENT)

    def taken_back(self, endpoint: Endpoint, until: float) -> None:
        """Another worker ended the ejection of `endpoint` at `until`, if there was one for longer."""
        record = self._records.get(endpoint.id)
        if record is not None and record.why is Reason.SILENT and record.until > until + _ROUNDING_S:
            del self._records[endpoint.id]

    def begin(self, endpoint: Endpoint) -> None:
        """A request goes to `endpoint`."""
        record = self._records.get(endpoint.id)
        if record is not None and record.ejections:
            record.trial = True

    def on_trial(self, endpoint: Endpoint) -> bool:
        """True when a request under way there decides whether it is taken back."""
        record = self._records.get(endpoint.id)
        return record is not None and record.trial

    def note(
        self, endpoint: Endpoint, verdict: AttemptVerdict, client: str, peers: Sequence[Endpoint], now: float
    ) -> bool:
        """Take the verdict of one attempt; returns True when it ejects.

        Args:
            endpoint: Who was asked.
            verdict: How it went.
            client: Who asked (API key or address).
            peers: All endpoints of the same model, `endpoint` among them.
            now: Monotonic seconds.
        """
        record = self._records.get(endpoint.id)
        if verdict is AttemptVerdict.GOOD:
            if record is not None:
                del self._records[endpoint.id]
            return False
        if record is None:
            if verdict is AttemptVerdict.NEUTRAL:
                return False
            record = self._records[endpoint.id] = _Record()
        was_trial, record.trial = record.trial, False
        if verdict is AttemptVerdict.NEUTRAL:
            return False
        if verdict is AttemptVerdict.SERVER_ERROR or verdict is AttemptVerdict.BROKEN:
            if (
                len(record.clients) < CLIENTS_TO_BLAME
            ):  # more tell nothing more, and where half are out they are never cleared
                record.clients.add(client)
            if len(record.clients) < CLIENTS_TO_BLAME:
                return False  # in a trial too: the next request is the next trial
        record.faults += 1
        if verdict is not AttemptVerdict.REFUSED and record.faults < FAULTS_TO_EJECT and not was_trial:
            return False
        return self._eject(endpoint, record, peers, now, _WHY.get(verdict, Reason.FAULTS))

    def answered_elsewhere(self, failed: Sequence[Endpoint]) -> None:
        """A request that `failed` could not answer was then answered well: it was not the request's fault."""
        for endpoint in failed:
            record = self._records.get(endpoint.id)
            if record is not None and len(record.clients) < CLIENTS_TO_BLAME:
                record.clients.add(_ELSEWHERE)

    def suspects(self, endpoint: Endpoint, client: str) -> bool:
        """True when an error that `client` got from `endpoint` is hardly its own: others got one too, or it was set aside."""
        record = self._records.get(endpoint.id)
        return record is not None and (record.ejections > 0 or any(one != client for one in record.clients))

    def ejected(self, now: float) -> list[str]:
        """Ids set aside at `now`."""
        return [name for name, record in self._records.items() if record.ejections and now < record.until]

    def _eject(self, endpoint: Endpoint, record: _Record, peers: Sequence[Endpoint], now: float, why: Reason) -> bool:
        out = sum(1 for peer in peers if peer.id != endpoint.id and not self.admits(peer, now))
        if (out + 1) * 2 > len(peers) and len(peers) > 1 and out > 0:
            return False
        record.ejections += 1
        record.until = now + min(EJECT_BASE_S * record.ejections, EJECT_LIMIT_S)
        record.why = why
        record.faults = 0
        record.clients.clear()
        if self._changed is not None:
            self._changed(endpoint, record.until, why)
        return True
