"""A model of the catalogue, and Hypothesis looking for a sequence of commands in which the two disagree."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import UNSET

from registry.core.catalogue import Catalogue
from registry.core.expiry import LEGACY_TTL_S
from registry.core.model import (
    Change,
    Command,
    CommandRefused,
    Conflict,
    Deregister,
    Instance,
    Register,
    Removed,
    Renew,
    SetDraining,
    Sweep,
    Unknown,
    Update,
    Upsert,
)
from tests.registry.records import registration

NAMES = st.sampled_from(["a", "b", "c"])
OWNERS = st.sampled_from([None, "one", "two"])
LIVES = st.integers(1, 3)
TTL_S = 10.0


@dataclass
class Held:
    """What the model knows of a record."""

    owner: str | None
    life: int
    generation: int
    heard_at: float
    stale: bool = False
    draining: bool = False

    @property
    def ttl_s(self) -> float:
        return LEGACY_TTL_S if self.owner is None else TTL_S


class CatalogueMachine(RuleBasedStateMachine):
    """Three names, two identified owners and old clients, in any order, with time passing."""

    def __init__(self) -> None:
        super().__init__()
        self.catalogue = Catalogue(epoch="e")
        self.now = 0.0
        self.model: dict[str, Held] = {}
        self.buried: dict[str, tuple[str, int, float]] = {}
        self.highest: dict[str, int] = {}
        self.watched: dict[str, Instance] = {}
        self.revision = 0

    def do(self, command: Command) -> Exception | None:
        """Apply a command; follow its changes as a watcher would; return how it was refused."""
        before = dict(self.watched)
        try:
            _, revised = self.catalogue.apply(command, self.now)
        except CommandRefused as error:
            assert before == self.watched
            return error
        for item in revised:
            assert item.revision == self.revision + 1
            self.revision = item.revision
            self.watch(item.change)
        return None

    def watch(self, change: Change) -> None:
        match change:
            case Upsert(instance):
                known = self.watched.get(instance.name)
                assert known is None or instance.generation >= known.generation
                self.watched[instance.name] = instance
            case Removed(instance):
                del self.watched[instance.name]

    @rule(seconds=st.sampled_from([0.5, 4.0, 11.0, 26.0, 130.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        assert self.do(Sweep()) is None
        for name, held in list(self.model.items()):
            age = self.now - held.heard_at
            if age >= 2.5 * held.ttl_s:
                del self.model[name]
            else:
                held.stale = held.stale or age >= held.ttl_s

    @rule(name=NAMES, owner=OWNERS, life=LIVES)
    def register(self, name: str, owner: str | None, life: int) -> None:
        life = 0 if owner is None else life
        ttl_s = UNSET if owner is None else TTL_S
        said = registration(name, instance_id=owner or UNSET, incarnation=life, ttl_s=ttl_s)
        refused = self.do(Register(said))
        held = self.model.get(name)
        if held and held.owner is not None:
            other = held.owner != owner
            if (other and not held.stale) or (not other and life < held.life):
                assert isinstance(refused, Conflict)
                return
        assert refused is None
        entry = self.catalogue.get(name)
        assert entry is not None
        generation = entry.instance.generation
        if held and held.owner is not None and (held.owner, held.life) == (owner, life):
            assert generation == held.generation
        else:
            assert generation > self.highest.get(name, 0)
        self.highest[name] = generation
        keeps_drain = held is not None and held.draining and held.owner == owner
        self.model[name] = Held(owner, life, generation, self.now, draining=keeps_drain)
        self.buried.pop(name, None)

    @rule(name=NAMES, owner=OWNERS, life=LIVES, status=st.sampled_from([None, "running", "stopping"]))
    def heartbeat(self, name: str, owner: str | None, life: int, status: str | None) -> None:
        refused = self.do(Renew(name, status, owner, None if owner is None else life))
        held = self.model.get(name)
        if held is None:
            stone = self.buried.get(name)
            gone = stone is not None and stone[0] == owner and life <= stone[1] and self.now < stone[2]
            assert isinstance(refused, Conflict if gone else Unknown)
        elif owner is None or (held.owner, held.life) == (owner, life):
            assert refused is None
            held.heard_at, held.stale = self.now, False
        else:
            assert refused is not None

    @rule(name=NAMES, port=st.integers(1, 9))
    def update(self, name: str, port: int) -> None:
        refused = self.do(Update(name, {"port": port}))
        held = self.model.get(name)
        assert (refused is None) == (held is not None)
        if held:
            held.heard_at, held.stale = self.now, False

    @rule(name=NAMES, on=st.booleans())
    def drain(self, name: str, on: bool) -> None:  # noqa: FBT001 - hypothesis gives it
        refused = self.do(SetDraining(name, on))
        held = self.model.get(name)
        assert (refused is None) == (held is not None)
        if held:
            held.draining = on

    @rule(name=NAMES, owner=OWNERS)
    def deregister(self, name: str, owner: str | None) -> None:
        refused = self.do(Deregister(name, owner))
        held = self.model.get(name)
        if held is None:
            assert isinstance(refused, Unknown)
        elif owner is not None and owner != held.owner:
            assert isinstance(refused, Conflict)
        else:
            assert refused is None
            del self.model[name]
            if held.owner is not None:
                self.buried[name] = (held.owner, held.life, self.now + 60.0)

    @invariant()
    def agrees_with_the_model(self) -> None:
        shown = {entry.instance.name: entry.instance for entry in self.catalogue}
        assert shown.keys() == self.model.keys()
        for name, held in self.model.items():
            instance = shown[name]
            assert (instance.registration.instance_id or None) == held.owner
            assert instance.registration.incarnation == held.life
            assert instance.generation == held.generation
            assert instance.stale == held.stale
            assert instance.draining == held.draining
            assert not instance.suspect

    @invariant()
    def changes_tell_the_whole_table(self) -> None:
        assert self.watched == {entry.instance.name: entry.instance for entry in self.catalogue}


CatalogueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCatalogue = CatalogueMachine.TestCase
