"""PURE. One request at one replica, as the policies see it; and what it tells the view of that replica."""

from collections.abc import Callable
from dataclasses import dataclass

from router.policy.decision import RoutingDecision
from router.policy.line import InLine


class Placements:
    """What a view of a replica is told by the requests placed there; a base class, so that imports run one way only."""

    def must_wait(self, placement: "PlacedRequest", now: float) -> bool:
        """Whether the replica has enough to read before the newest one."""
        raise NotImplementedError

    def wait(self, placement: "PlacedRequest", urgency: int, go: Callable[[], None], now: float) -> None:
        """The newest one waits here until `go` is called."""
        raise NotImplementedError

    def send(self, placement: "PlacedRequest", now: float) -> None:
        """It waits no longer."""
        raise NotImplementedError

    def first_byte(self, placement: "PlacedRequest", now: float) -> None:
        """The first token came."""
        raise NotImplementedError

    def is_no_prompt(self, placement: "PlacedRequest") -> None:
        """There is nothing to read."""
        raise NotImplementedError

    def over(self, placement: "PlacedRequest", now: float) -> None:
        """The request ended."""
        raise NotImplementedError

    def let_go(self, now: float) -> None:
        """Send who waits here, while the replica has little to read."""
        raise NotImplementedError


@dataclass(eq=False)
class PlacedRequest:
    """One request at one replica, until it is over.

    `matched_bytes` of its prompt were believed to be in the cache and `known_bytes` had been placed there before;
    `ages` are (where in the prompt, bytes since) of some of the known ones.
    """

    view: Placements
    at: float
    """When it was placed, and sent."""
    prompt_bytes: int
    work_bytes: int
    matched_bytes: int
    known_bytes: int
    ages: tuple[tuple[int, float], ...]
    non_streamed: bool
    """True when the answer comes in one piece: no first byte tells that the prompt was read."""
    service_s: float | None = None
    reading: bool = True
    is_patient: bool = False
    """It may wait here: its policy reads prompts, so that it is known how much of it is to be read."""
    in_line: InLine | None = None
    """Set while it waits here, and the replica has not got it."""
    answered: bool = False
    """True once bytes of its answer came."""
    idle: bool = False
    """True for a non-streamed request that found the replica with nothing else to read."""
    cached_share: float | None = None
    """The share of its prompt tokens that were in the cache, if the answer said so."""
    written_tokens: int | None = None
    """The tokens of its answer, if that said so."""

    policy: str = ""
    decision: RoutingDecision | None = None

    def story(self) -> dict[str, object]:
        """The decision for the access log: what was expected of the replica, and what the others would have cost."""
        story: dict[str, object] = {
            "policy": self.policy,
            "expected_cached_bytes": self.matched_bytes,
            "expected_read_bytes": self.work_bytes,
        }
        decision = self.decision
        if decision is not None and decision.scores:
            scored = zip(decision.candidates, decision.scores, strict=True)
            story["scores"] = {endpoint.name: round(score, 6) for endpoint, score in scored}
        return story

    def must_wait(self, now: float) -> bool:
        """True when its replica has enough to read, so that it need not have this one yet. Asked before anything is placed after it."""
        return self.is_patient and self.view.must_wait(self, now)

    def wait(self, urgency: int, go: Callable[[], None], now: float) -> None:
        """Do so, until `go` is called. The less `urgency` is, the more urgent."""
        self.view.wait(self, urgency, go, now)

    def send(self, now: float) -> None:
        """Have its turn now, if it waits."""
        self.view.send(self, now)

    def first_byte(self, now: float) -> None:
        """The first token came: the prompt was read."""
        self.view.first_byte(self, now)
        self.view.let_go(now)

    def is_no_prompt(self) -> None:
        """There is nothing to read, and nothing to learn: it only takes a place until it is over."""
        self.view.is_no_prompt(self)

    def over(self, now: float) -> None:
        """The request ended, however it did."""
        self.view.over(self, now)
        self.view.let_go(now)
