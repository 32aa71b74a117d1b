"""PURE. Who gets a request: cache type narrows, a key decides, and the model's policy does the rest (docs/contract.md 2)."""

from collections.abc import Callable, Sequence

from router.model import Endpoint, Facts, Table
from router.policy import affinity, cache_type
from router.policy.cost import Cost
from router.policy.decision import RoutingDecision
from router.policy.fleet_view import FleetView
from router.policy.least_loaded import LeastLoaded
from router.policy.models import MEMORY, ModelRules
from router.policy.placed import PlacedRequest
from router.policy.round_robin import RoundRobin
from router.policy.rule import Rng, RoutingPolicy, Scores
from router.policy.session import StickySession
from router.policy.slow_start import SlowStart


class Chooser:
    """Picks for one worker.

    Args:
        rng: Decides between the parts of a split.
        in_flight: Requests at a replica now, all workers together.
        rules: What is set per model.
        fleet: What is believed of the replicas.
        cache_type_threshold_bytes: See `cache_type`.
        sticky_keys: Requests with an affinity go where it leads while that replica has room, whatever the policy.
        slow_start_s: See `slow_start`.
    """

    def __init__(
        self,
        *,
        rng: Rng,
        in_flight: Callable[[Endpoint], int],
        rules: ModelRules | None = None,
        fleet: FleetView | None = None,
        cache_type_threshold_bytes: int = cache_type.DEFAULT_THRESHOLD_BYTES,
        sticky_keys: bool = True,
        slow_start_s: float = 0.0,
    ) -> None:
        self.rules = rules or ModelRules()
        self.fleet = fleet or FleetView()
        self._rng = rng
        self._in_flight = in_flight
        self._threshold_bytes = cache_type_threshold_bytes
        self._sticky_keys = sticky_keys
        self._slow_start = SlowStart(slow_start_s)
        self._policies: dict[tuple[str, str | None], RoutingPolicy] = {}
        self._by_model: dict[str | None, RoutingPolicy] = {}
        self._table = Table(0)
        self._rows: dict[str, Endpoint] = {}
        """By id."""
        self._several = False
        self._tracking = False
        self._weightless = False
        self.passed_over: frozenset[str] = frozenset()
        """Ids of endpoints that get nothing while there are others (`proxy/watch.py`)."""

    def set_table(self, table: Table, now: float) -> None:
        """Forget what concerns endpoints that are gone."""
        self._table = table
        self._by_model.clear()
        if len(self._policies) > MEMORY:
            self._policies.clear()
        known, self._rows = self._rows, {endpoint.id: endpoint for endpoint in table.endpoints}
        self.fleet.keep(self._rows, now)
        for name, endpoint in self._rows.items():
            if endpoint.waiting is not None and known.get(name) is not endpoint:  # a report that came now
                foreign = max(0, endpoint.waiting - self._in_flight(endpoint))
                self.fleet.view(endpoint).note_foreign_load(foreign, now)
        self._slow_start.note(table.endpoints, now)
        self._several = len(table.endpoints) > 1
        self._tracking = self._several and any(
            self._choices(model) and self.policy(model).tracks for model in (None, *table.by_model)
        )
        self._weightless = any(not endpoint.weight for endpoint in table.endpoints)

    def policy(self, model: str | None, asked: str | None = None) -> RoutingPolicy:
        """The policy for `model`, or the one `asked` for by name."""
        if asked is not None:
            return self._made(asked, model)
        policy = self._by_model.get(model)
        if policy is None:
            policy = self._made(self.rules.policy_of(model), model)
            if model is None or model in self._table.by_model:
                self._by_model[model] = policy
        return policy

    def uses(self, name: str) -> bool:
        """Whether some model's policy is `name`."""
        return any(self.rules.policy_of(model) == name for model in (None, *self._table.by_model))

    def reads_any_prompt(self) -> bool:
        """Whether some model's policy reads prompts, and has a choice."""
        return self._several and any(self.reads_prompt(model, None) for model in (None, *self._table.by_model))

    def reads_prompt(self, model: str | None, asked: str | None) -> bool:
        """Whether the facts of a request for `model` are to have the prompt's blocks: only where there is a choice."""
        return self._several and self._choices(model) and self.policy(model, asked).reads_prompts

    def resolve(self, model: str, key: str | None, is_ready: Callable[[str], bool]) -> str:
        """See `models.py`."""
        return self.rules.resolve(model, key, is_ready, self._rng)

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> RoutingDecision:
        """One of `candidates` (at least one)."""
        if len(candidates) == 1:
            return RoutingDecision(candidates[0])
        candidates = self._narrowed(candidates, facts, now)
        if len(candidates) == 1:
            return RoutingDecision(candidates[0])
        policy = self.policy(facts.model, facts.policy)
        owner = self._owner(candidates, facts, policy)
        return policy.pick(candidates, facts, now) if owner is None else RoutingDecision(owner)

    def placed(self, decision: RoutingDecision, facts: Facts, now: float) -> PlacedRequest | None:
        """A request goes where `pick` decided; None where nobody needs to know."""
        if not self._tracking and facts.policy is None:
            return None
        policy = self.policy(facts.model, facts.policy)
        if not self._choices(facts.model) or not policy.tracks:
            return None
        placed = self.fleet.view(decision.endpoint).place(facts, now)
        placed.policy = policy.name
        placed.is_patient = policy.reads_prompts
        placed.decision = decision
        return placed

    def explain(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> tuple[str, Scores, Endpoint]:
        """The rule that decides, every remaining candidate's inputs by id, and the endpoint that `pick` would take."""
        candidates = self._narrowed(candidates, facts, now)
        policy = self.policy(facts.model, facts.policy)
        owner = self._owner(candidates, facts, policy)
        if owner is not None and facts.affinity is not None:
            wishes = {one.id: {"score": -affinity.score(facts.affinity, one)} for one in candidates}
            return "affinity", wishes, owner
        return policy.name, policy.scores(candidates, facts, now), policy.peek(candidates, facts, now)

    def _owner(self, candidates: Sequence[Endpoint], facts: Facts, policy: RoutingPolicy) -> Endpoint | None:
        """The endpoint that the request's key leads to, while it has room for it; None leaves it to the policy."""
        key = facts.affinity
        if key is None or not self._sticky_keys or facts.policy is not None or policy.name == "session":
            return None
        owner = affinity.pick(key, candidates)
        mean = affinity.mean_per_weight(candidates, self._in_flight) * owner.weight
        return owner if affinity.has_room(self._in_flight(owner), mean) else None

    def _narrowed(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Sequence[Endpoint]:
        if self.passed_over:
            candidates = [endpoint for endpoint in candidates if endpoint.id not in self.passed_over] or candidates
        if facts.text_bytes is not None:
            candidates = cache_type.prefer(candidates, facts.text_bytes, self._threshold_bytes)
        if self._weightless:
            candidates = [endpoint for endpoint in candidates if endpoint.weight] or candidates
        return self._slow_start.weigh(candidates, now) if self._slow_start.active else candidates

    def _choices(self, model: str | None) -> bool:
        return model is None or len(self._table.by_model.get(model, ())) > 1

    def _made(self, name: str, model: str | None) -> RoutingPolicy:
        # One per model: what a fleet's utilisation or turn is must not mix with another's.
        policy = self._policies.get((name, model))
        if policy is None:
            policy = self._policies[name, model] = self._make(name)
        return policy

    def _make(self, name: str) -> RoutingPolicy:
        match name:
            case "round_robin":
                return RoundRobin()
            case "least_loaded":
                return LeastLoaded(self.fleet, self._in_flight)
            case "session":
                return StickySession(self._in_flight, LeastLoaded(self.fleet, self._in_flight))
            case _:
                return Cost(self.fleet)
