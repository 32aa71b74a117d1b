"""PURE. Where one more replica fits: what is free of each node, and why none will do.

A holder of an accelerator is named by its request id where we know it, else by its replica id. What heartbeats do not show
yet is counted by the assignment.
"""

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
    return Needs(max(1, count) if shares else count, memory_mb, shares)


Kind: TypeAlias = tuple[Hashable, ...]


def kind_of(wish: Wish) -> Kind:
    """What decides where a replica fits: two deployments with the same fit in the same places."""
    return (wish.template, wish.accelerators, wish.memory_mb, wish.nodes, tuple(sorted(wish.labels.items())))


@dataclass(frozen=True, slots=True)
class Holding:
    """What one replica holds of a node."""

    indices: tuple[int, ...]
    needs: Needs


@dataclass(slots=True)
class Space:
    """What is free of one node while a plan is made; `seen` are those of ours that its `room` has counted already."""

    node: Node
    holders: dict[int, set[str]] = field(default_factory=dict)
    promised_mb: dict[int, int] = field(default_factory=dict)
    holdings: dict[str, Holding] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    ours: dict[str, int] = field(default_factory=dict)
    """Replicas by deployment, for `spread`."""

    def fitting(self, needs: Needs, gone: Collection[str] = ()) -> tuple[int, ...] | None:
        """The accelerators that it would have if those in `gone` were not there; None: it does not fit."""
        if self.node.room is not None:
            back = sum(1 for one in gone if one in self.seen)
            if self.node.room + back - sum(1 for one in self.unseen if one not in gone) < 1:
                return None
        if needs.accelerators == 0:
            return ()
        usable = [slot for slot in self.node.slots if not slot.claimed and self._takes(slot, needs, gone)]
        if len(usable) < needs.accelerators:
            return None
        order = sorted(usable, key=lambda slot: (self._left_mb(slot, gone), slot.index))
        return tuple(slot.index for slot in order[: needs.accelerators])

    def _takes(self, slot: Slot, needs: Needs, gone: Collection[str]) -> bool:
        there = [one for one in self.holders.get(slot.index, ()) if one not in gone]
        if not needs.shares:
            return not there and not (0 < slot.memory_mb < needs.memory_mb)
        if there and not self.promised_mb.get(slot.index):
            return False
        return self._left_mb(slot, gone) >= needs.memory_mb

    def _left_mb(self, slot: Slot, gone: Collection[str]) -> int:
        held = self.holders.get(slot.index, set())
        back = sum(self.holdings[one].needs.memory_mb for one in held if one in gone and one in self.holdings)
        return slot.memory_mb - max(0, self.promised_mb.get(slot.index, 0) - back)

    def take(self, holder: str, needs: Needs, indices: Iterable[int], deployment: str | None = None) -> None:
        """`holder` has these from now on."""
        chosen = tuple(indices)
        self.unseen.add(holder)
        self.holdings[holder] = Holding(chosen, needs)
        for index in chosen:
            self.holders.setdefault(index, set()).add(holder)
            if needs.shares:
                self.promised_mb[index] = self.promised_mb.get(index, 0) + needs.memory_mb
        if deployment is not None:
            self.ours[deployment] = self.ours.get(deployment, 0) + 1

    def free(self) -> int:
        """Accelerators that nobody has."""
        return sum(1 for slot in self.node.slots if not slot.claimed and not self.holders.get(slot.index))

    def usable(self) -> int:
        """Accelerators that deployments may have at all."""
        return sum(1 for slot in self.node.slots if not slot.claimed)


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


def reckon(space: Space, request_id: str, needs: Needs, deployment: str, *, seen: bool, settled: bool) -> None:
    """Counts one of ours on its node: by what the heartbeat shows of it, else by what it will take.

    `settled`: it was ready once, so what is shown is all that it has (of an older revision, it may need less than now).
    """
    shown = tuple(index for index, holders in space.holders.items() if request_id in holders)
    if seen:
        space.seen.add(request_id)
    if shown or settled or not needs.accelerators:
        space.holdings[request_id] = Holding(shown, needs)
        space.ours[deployment] = space.ours.get(deployment, 0) + 1
        if not seen and not shown:
            space.unseen.add(request_id)
        return
    indices = space.fitting(needs)
    if indices is None:  # it was told to go there: its agent will refuse it, or frees something first
        indices = tuple(slot.index for slot in space.node.slots if not slot.claimed)[: needs.accelerators]
    space.take(request_id, needs, indices, deployment)
    if seen:
        space.unseen.discard(request_id)


@dataclass(frozen=True, slots=True)
class Choice:
    """The nodes that may have a deployment: `tried` without those that it must wait for, and why others may not."""

    allowed: tuple[Space, ...]
    tried: tuple[Space, ...]
    why_none: str = ""
    setback: Setback | None = None


def choose(wish: Wish, spaces: Sequence[Space], setbacks: Sequence[Setback], now: float) -> Choice:
    """The nodes that placement, template, drain and lease allow, and of them those where no failed start is waited for."""
    allowed = []
    for space in spaces:
        node = space.node
        named = not wish.nodes or node.name in wish.nodes
        labelled = all(node.labels.get(key) == value for key, value in wish.labels.items())
        if named and labelled and not node.away and not node.draining and needs_on(wish, node) is not None:
            allowed.append(space)
    if not allowed:
        return Choice((), (), _why_no_node(wish, [space.node for space in spaces]))
    waits = {one.node: one for one in setbacks if one.deployment == wish.name and one.until > now}
    tried = tuple(space for space in allowed if space.node.name not in waits)
    soonest = min(
        (waits[s.node.name] for s in allowed if s.node.name in waits), key=lambda one: one.until, default=None
    )
    return Choice(tuple(allowed), tried, setback=soonest)


def _why_no_node(wish: Wish, nodes: Sequence[Node]) -> str:
    """In the order in which somebody would look for the cause."""
    if not nodes:
        return "no node's agent is registered"
    left = [node for node in nodes if not wish.nodes or node.name in wish.nodes]
    if not left:
        return f"none of its nodes is registered: {', '.join(sorted(wish.nodes)[:5])}"
    left = [node for node in left if all(node.labels.get(key) == value for key, value in wish.labels.items())]
    if not left:
        labels = ", ".join(f"{key}={value}" for key, value in sorted(wish.labels.items())[:5])
        return f"no node has the labels {labels}"
    having = [node for node in left if needs_on(wish, node) is not None]
    if not having:
        return f"no node that it may have has the template {wish.template!r}"
    word = "draining" if all(node.draining for node in having) else "away or draining"
    return f"every node that it may have is {word if any(node.draining for node in having) else 'away'}"


def best(wish: Wish, spaces: Iterable[Space], gone: Collection[str] = ()) -> Place | None:
    """Where it goes: what is left free is least (`spread`: the node with the fewest of it, then the emptiest)."""
    places = []
    for space in spaces:
        needs = needs_on(wish, space.node)
        indices = None if needs is None else space.fitting(needs, gone)
        if needs is not None and indices is not None:
            places.append(Place(space, needs, indices))
    return min(places, key=lambda place: _rank(wish, place), default=None)


def _rank(wish: Wish, place: Place) -> tuple[float, ...] | tuple[float | str, ...]:
    space, free = place.space, place.space.free()
    ours, all_ours = space.ours.get(wish.name, 0), sum(space.ours.values())
    if wish.spread:
        return (ours, -free, all_ours, space.node.name)
    if not place.needs.accelerators:
        return (all_ours, ours, space.node.name)
    joins = place.needs.shares and any(space.promised_mb.get(index) for index in place.indices)
    return (not joins, free, all_ours, space.node.name)


def why_never(wish: Wish, choice: Choice) -> str | None:
    """Why no node could take it even if it were empty; None: one could."""
    if not choice.allowed:
        return choice.why_none
    largest: Space | None = None
    needed: Needs | None = None
    for space in choice.allowed:
        needs = needs_on(wish, space.node)
        if needs is None:
            continue
        if Space(Node(space.node.name, space.node.slots)).fitting(needs) is not None:
            return None
        if largest is None or space.usable() > largest.usable():
            largest, needed = space, needs
    if largest is None or needed is None:
        return "no node can take it"
    kind = largest.node.slots[0].kind if largest.node.slots else "accelerators"
    if largest.usable() >= needed.accelerators:
        most = max((slot.memory_mb for slot in largest.node.slots if not slot.claimed), default=0)
        return f"needs {needed.memory_mb} MB of each {kind}, the largest has {most}"
    return f"needs {needed.accelerators} {kind}, the largest free node has {largest.usable()}"
