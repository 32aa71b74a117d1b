"""PURE. Where one more replica fits: what is free of each node, and why none will do.

A holder of an accelerator is named by its request id where we know it, else by its replica id. What heartbeats do not show
yet is counted by the assignment.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from registry.deployments.model import Needs, Node, Setback, Slot, Wish


def needs_on(wish: Wish, node: Node) -> Needs | None:
    """What one replica takes of that node; None: the node has no such template."""
    if wish.template is None:
        return Needs(wish.accelerators or 0, wish.memory_mb or 0)
    glance = node.templates.get(wish.template)
    if glance is None:
        return None
    count = glance.accelerators if wish.accelerators is None else wish.accelerators
    memory_mb = glance.memory_mb if wish.memory_mb is None else wish.memory_mb
    shares = glance.shares and memory_mb > 0
    followers = (wish.followers or glance.followers) if glance.followers else 0
    return Needs(max(1, count) if shares else count, memory_mb, shares, followers)


Kind: TypeAlias = tuple[Hashable, ...]


def kind_of(wish: Wish) -> Kind:
    """What decides where a replica fits: two deployments with the same fit in the same places."""
    sizes = (wish.accelerators, wish.memory_mb, wish.followers)
    return (wish.template, *sizes, wish.nodes, tuple(sorted(wish.labels.items())))


@dataclass(slots=True)
class Space:
    """What is free of one node while a plan is made.

    `seen` are those of ours that its `room` has counted already, `unseen` the others. Those in `leaving` are to go.
    """

    node: Node
    holders: dict[int, set[str]] = field(default_factory=dict)
    promised_mb: dict[int, int] = field(default_factory=dict)
    needs: dict[str, Needs] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    leaving: set[str] = field(default_factory=set)
    ours: Counter[str] = field(default_factory=Counter)
    """Replicas by deployment."""
    _known: dict[Hashable, tuple[int, ...] | None] = field(default_factory=dict)
    """Answers of `fitting`, until something changes."""

    def now(self, needs: Needs) -> tuple[int, ...] | None:
        """The accelerators that it would have now; None: it does not fit."""
        if needs not in self._known:
            self._known[needs] = self.fitting(needs)
        return self._known[needs]

    def later(self, needs: Needs) -> tuple[int, ...] | None:
        """The same when those that are to go are gone."""
        key = (needs, True)
        if key not in self._known:
            self._known[key] = self.fitting(needs, self.leaving)
        return self._known[key]

    def fitting(self, needs: Needs, gone: Collection[str] = ()) -> tuple[int, ...] | None:
        """The same if those in `gone` were not there."""
        if self.node.room is not None:
            back = sum(1 for one in gone if one in self.seen)
            if self.node.room + back - sum(1 for one in self.unseen if one not in gone) < 1:
                return None
        usable = self.usable(needs, gone) if needs.accelerators else []
        if len(usable) < needs.accelerators:
            return None
        order = sorted(usable, key=lambda slot: (self._left_mb(slot, gone), slot.index))
        return tuple(slot.index for slot in order[: needs.accelerators])

    def usable(self, needs: Needs, gone: Collection[str] = ()) -> list[Slot]:
        """Accelerators that it could have if those in `gone` were not there."""
        return [slot for slot in self.node.slots if not slot.claimed and self._takes(slot, needs, gone)]

    def _takes(self, slot: Slot, needs: Needs, gone: Collection[str]) -> bool:
        held = self.holders.get(slot.index, ())
        is_held = any(one not in gone for one in held) if gone else bool(held)
        if not needs.shares:
            return not is_held and not (0 < slot.memory_mb < needs.memory_mb)
        if is_held and (not self.promised_mb.get(slot.index) or self._is_kept(slot)):
            return False
        return self._left_mb(slot, gone) >= needs.memory_mb

    def _is_kept(self, slot: Slot) -> bool:
        """One that needs it whole waits for it."""
        return any(one in self.needs and not self.needs[one].shares for one in self.holders[slot.index])

    def _left_mb(self, slot: Slot, gone: Collection[str]) -> int:
        promised = self.promised_mb.get(slot.index, 0)
        held = self.holders.get(slot.index, ()) if promised and gone else ()
        back = sum(self.needs[one].memory_mb for one in held if one in gone and one in self.needs)
        return slot.memory_mb - max(0, promised - back)

    def take(self, holder: str, needs: Needs, indices: Iterable[int], deployment: str | None = None) -> None:
        """`holder` has these from now on."""
        self.unseen.add(holder)
        self.needs[holder] = needs
        for index in indices:
            self.holders.setdefault(index, set()).add(holder)
            if needs.shares:
                self.promised_mb[index] = self.promised_mb.get(index, 0) + needs.memory_mb
        if deployment is not None:
            self.ours[deployment] += 1
        self._known.clear()

    def leave(self, holder: str) -> None:
        """`holder` is to go."""
        self.leaving.add(holder)
        self._known.clear()

    def reckon(self, request_id: str, needs: Needs, deployment: str, *, seen: bool) -> None:
        """Count one of ours by what the heartbeat shows of it, else by what it was promised."""
        if seen:
            self.seen.add(request_id)
        if any(request_id in holders for holders in self.holders.values()):
            self.needs[request_id] = needs
            self.ours[deployment] += 1
            return
        indices = self.fitting(needs)
        if indices is None:  # it was told to go there: its agent will refuse it, or frees something first
            indices = tuple(slot.index for slot in self.node.slots if not slot.claimed)[: needs.accelerators]
        self.take(request_id, needs, indices, deployment)
        if seen:
            self.unseen.discard(request_id)

    def free(self) -> int:
        """Accelerators that nobody has."""
        return sum(1 for slot in self.node.slots if not slot.claimed and not self.holders.get(slot.index))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a replica goes."""

    space: Space
    needs: Needs
    indices: tuple[int, ...]


def space_of(node: Node, request_ids: Mapping[str, str]) -> Space:
    """A node as its heartbeat shows it; `request_ids` names the replicas that are ours."""
    space = Space(node)
    for slot in node.slots:
        space.holders[slot.index] = {request_ids.get(holder, holder) for holder in slot.holders}
        space.promised_mb[slot.index] = slot.shared_mb
    return space


Option: TypeAlias = tuple[Space, Needs]
"""A node that may have a deployment, and what a replica takes of it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The nodes that may have a deployment: `tried` without those that it must wait for, until `setback` is over."""

    allowed: Sequence[Option]
    tried: Sequence[Option]
    setback: Setback | None = None


def allowed(wish: Wish, spaces: Iterable[Space]) -> list[Option]:
    """The nodes that placement, template, drain and lease allow."""
    return [
        (space, needs)
        for space in spaces
        if _may(wish, space.node) and not (space.node.away or space.node.draining)
        if (needs := needs_on(wish, space.node)) is not None
    ]


def _may(wish: Wish, node: Node) -> bool:
    named = not wish.nodes or node.name in wish.nodes
    return named and all(node.labels.get(key) == value for key, value in wish.labels.items())


def choose(options: Sequence[Option], setbacks: Iterable[Setback], now: float) -> Choice:
    """Of the nodes allowed those where no failed start of it is waited for; `setbacks` are the deployment's."""
    waits = {one.node: one for one in setbacks if one.until > now}
    if not waits:
        return Choice(options, options)
    held = [waits[space.node.name] for space, _ in options if space.node.name in waits]
    tried = [option for option in options if option[0].node.name not in waits]
    return Choice(options, tried, min(held, key=lambda one: one.until, default=None))


def _why_no_node(wish: Wish, nodes: Sequence[Node]) -> str:
    """In the order in which somebody would look for the cause."""
    if not nodes:
        return "no node's agent is registered"
    left = [node for node in nodes if not wish.nodes or node.name in wish.nodes]
    if not left:
        return f"none of its nodes is registered: {', '.join(sorted(wish.nodes)[:5])}"
    left = [node for node in left if _may(wish, node)]
    if not left:
        labels = ", ".join(f"{key}={value}" for key, value in sorted(wish.labels.items())[:5])
        return f"no node has the labels {labels}"
    having = [node for node in left if needs_on(wish, node) is not None]
    if not having:
        return f"no node that it may have has the template {wish.template!r}"
    word = "draining" if all(node.draining for node in having) else "away or draining"
    return f"every node that it may have is {word if any(node.draining for node in having) else 'away'}"


def best(wish: Wish, options: Iterable[Option], *, later: bool = False) -> Place | None:
    """Where it goes: what is left free is least (`spread`: the node with the fewest of it, then the emptiest).

    `later`: when those that are to go are gone.
    """
    places = []
    for space, needs in options:
        indices = space.later(needs) if later else space.now(needs)
        if indices is not None:
            places.append(Place(space, needs, indices))
    return min(places, key=lambda place: _rank(wish, place), default=None)


def group(wish: Wish, options: Sequence[Option], *, later: bool = False) -> list[Place]:
    """Where all members of one replica go, the leader first, each to another node; empty: not all of them fit."""
    found: list[Place] = []
    left = list(options)
    while (place := best(wish, left, later=later)) is not None:
        found.append(place)
        if len(found) > found[0].needs.followers:
            return found
        left = [option for option in left if option[0] is not place.space]
    return []


def _rank(wish: Wish, place: Place) -> tuple[float, ...] | tuple[float | str, ...]:
    space, free = place.space, place.space.free()
    ours, all_ours = space.ours[wish.name], space.ours.total()
    if wish.spread:
        return (ours, -free, all_ours, space.node.name)
    if not place.needs.accelerators:
        return (all_ours, ours, space.node.name)
    joins = place.needs.shares and any(space.promised_mb.get(index) for index in place.indices)
    return (not joins, free, all_ours, space.node.name)


def why_never(wish: Wish, options: Sequence[Option], nodes: Sequence[Node]) -> str | None:
    """Why no node could take it even if it were empty; None: one could. `options` are those of `nodes` that are allowed."""
    if not options:
        return _why_no_node(wish, nodes)
    empty = [
        needs for space, needs in options if Space(Node(space.node.name, space.node.slots)).fitting(needs) is not None
    ]
    size = 1 + max((needs.followers for _, needs in options), default=0)
    if len(empty) >= size:
        return None
    if empty:
        return f"needs {size} nodes for a leader and {size - 1} follower(s), {len(empty)} would do"
    largest, needed = max(options, key=lambda option: len(_unclaimed(option[0].node)))
    there = _unclaimed(largest.node)
    kind = largest.node.slots[0].kind if largest.node.slots else "accelerators"
    if len(there) >= needed.accelerators:
        most = max((slot.memory_mb for slot in there), default=0)
        return f"needs {needed.memory_mb} MB of each {kind}, the largest has {most}"
    return f"needs {needed.accelerators} {kind}, the largest free node has {len(there)}"


def _unclaimed(node: Node) -> list[Slot]:
    return [slot for slot in node.slots if not slot.claimed]
