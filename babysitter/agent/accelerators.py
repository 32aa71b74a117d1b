"""PURE: which of the node's accelerators a new replica gets: none twice, and none that a hand-made file claims."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from common.wire.deployment import Accelerator

VARIABLES: Mapping[str, str] = {
    "cuda": "CUDA_VISIBLE_DEVICES",
    "iluvatar": "CUDA_VISIBLE_DEVICES",
    "rocm": "HIP_VISIBLE_DEVICES",
    "hip": "HIP_VISIBLE_DEVICES",
    "hygon": "HIP_VISIBLE_DEVICES",
    "hpcc": "HPCC_VISIBLE_DEVICES",
    "metax": "HPCC_VISIBLE_DEVICES",
    "ascend": "ASCEND_RT_VISIBLE_DEVICES",
    "musa": "MUSA_VISIBLE_DEVICES",
    "moore": "MUSA_VISIBLE_DEVICES",
    "mlu": "MLU_VISIBLE_DEVICES",
    "cambricon": "MLU_VISIBLE_DEVICES",
}
"""The variable that assigns accelerators of a kind; any other kind's must be told."""
ORDER = {"CUDA_VISIBLE_DEVICES": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}}
"""CUDA numbers the fastest first unless told; NVML, whose memory we show, goes by the bus."""
MOST_SHOWN = 64
"""Replicas and files that a heartbeat names with one accelerator; a registry bounds a heartbeat."""


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator. `memory_mb` 0: not known."""

    index: int
    kind: str
    memory_mb: int = 0


class Need(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a replica needs: accelerators of its own with at least `memory_mb` each, or `memory_mb` of each where it shares.

    A template's `[needs]`, which a request may replace.
    """

    accelerators: Annotated[int, Meta(ge=0, le=1024)] = 0
    memory_mb: Annotated[int, Meta(ge=0)] = 0
    shares: bool = False

    @property
    def count(self) -> int:
        """How many it gets; one that shares needs one at least."""
        return max(1, self.accelerators) if self.is_shared else self.accelerators

    @property
    def is_shared(self) -> bool:
        """Whether it takes a part of each: without a size there is no telling which part."""
        return self.shares and self.memory_mb > 0


@dataclass(frozen=True, slots=True)
class Hold:
    """What a replica has: whole accelerators, or `shared_mb` of each."""

    replica_id: str
    indices: Sequence[int]
    shared_mb: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """Who has what of the node: its replicas, and hand-made files by name."""

    holds: Sequence[Hold] = ()
    claims: Mapping[str, frozenset[int]] = field(default_factory=dict)


class Lacking(Exception):
    """The node never has what is needed; `field` is the member of the request that asks for too much."""

    def __init__(self, message: str, wrong: str) -> None:
        super().__init__(message)
        self.field = wrong


class Taken(Exception):
    """Others have it now."""


def choose(devices: Sequence[Device], held: Held, need: Need) -> list[int]:
    """The accelerators of a new replica, by index.

    Of those that it shares, the ones it leaves least of; of its own, the smallest that do.

    Raises:
        Lacking: The node has not so many, or none so large.
        Taken: It has, but they are not free.
    """
    if not need.count:
        return []
    kind = devices[0].kind if devices else "accelerators"
    wanted = f"needs {need.count} {kind}"
    if need.count > len(devices):
        raise Lacking(f"{wanted}, the node has {len(devices) or 'none'}", "accelerators")
    if need.memory_mb:
        wanted = f"{wanted} with {need.memory_mb} MiB {'to share' if need.is_shared else 'each'}"
        if need.is_shared and not any(device.memory_mb for device in devices):
            raise Lacking(f"{wanted}, but the memory is not known here: set accelerators.memory_mb", "memory_mb")
        large = sum(_is_large(device, need) for device in devices)
        if large < need.count:
            raise Lacking(f"{wanted}, the node has {large or 'none'}", "memory_mb")
    room = _room(devices, held)
    fitting = sorted((left, index) for index, left in room.items() if _fits(index, left, devices, held, need))
    if len(fitting) < need.count:
        raise Taken(f"{wanted}, {len(fitting) or 'none'} {'is' if len(fitting) <= 1 else 'are'} free")
    return sorted(index for _, index in fitting[: need.count])


def _is_large(device: Device, need: Need) -> bool:
    """One of unknown size does for a replica that gets all of it."""
    return device.memory_mb >= need.memory_mb or (not device.memory_mb and not need.is_shared)


def _room(devices: Sequence[Device], held: Held) -> dict[int, int]:
    """MiB that nobody was promised, of the accelerators that are nobody's alone, by index."""
    claimed = frozenset[int]().union(*held.claims.values())
    room = {device.index: device.memory_mb for device in devices if device.index not in claimed}
    for hold in held.holds:
        for index in hold.indices:
            if hold.shared_mb and index in room:
                room[index] -= hold.shared_mb
            else:
                room.pop(index, None)
    return room


def _fits(index: int, left: int, devices: Sequence[Device], held: Held, need: Need) -> bool:
    if need.is_shared:
        return left >= need.memory_mb
    is_whole = not any(index in hold.indices for hold in held.holds)
    return is_whole and any(device.index == index and _is_large(device, need) for device in devices)


def environment(variable: str, indices: Sequence[int], *, hide: bool) -> dict[str, str]:
    """What the server of a replica with these accelerators gets; `hide`: one without any sees none."""
    if indices:
        return {variable: ",".join(map(str, indices)), **ORDER.get(variable, {})}
    return {variable: ""} if hide else {}


def indices_in(value: str, all_of_them: Iterable[int]) -> frozenset[int]:
    """The accelerators that a variable's value means; all of them where it names one by other than its number."""
    words = [word.strip() for word in value.split(",") if word.strip()]
    if not all(word.isascii() and word.isdigit() and len(word) <= 4 for word in words):  # noqa: PLR2004 - no such number
        return frozenset(all_of_them)
    return frozenset(map(int, words))


def claimed_value(settings: Mapping[str, object], variable: str) -> str:
    """What a babysitter's settings file gives the variable; empty when it does not."""
    backend = settings.get("backend")
    for table in (backend.get("env") if isinstance(backend, Mapping) else None, settings.get("env")):
        if isinstance(table, Mapping) and variable in table:
            return str(table[variable])
    return ""


def glance(devices: Sequence[Device], held: Held) -> list[Accelerator]:
    """The node's accelerators as its heartbeat tells of them."""
    return [
        Accelerator(
            index=device.index,
            kind=device.kind,
            memory_mb=device.memory_mb,
            replicas=[hold.replica_id for hold in held.holds if device.index in hold.indices][:MOST_SHOWN],
            claims=[name for name, indices in held.claims.items() if device.index in indices][:MOST_SHOWN],
            shared_mb=sum(hold.shared_mb for hold in held.holds if device.index in hold.indices),
        )
        for device in devices
    ]
