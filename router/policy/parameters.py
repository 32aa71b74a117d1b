"""PURE. What is changed in the requests for a model (`models.NAME.parameters`), for clients that cannot be changed.

`defaults` are set where the body has no such member (or null), `forced` in any case, `removed` are taken out. A name may lead
into objects (`chat_template_kwargs.enable_thinking`). Values are as they stand in the settings: an object replaces an object.
Every other member stays as the client wrote it, byte for byte. A body in which `forced` or `removed` might change something
is always written anew: of a member that stands there twice, engines differ in which one they read.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec

from router.body import decode_members

NOT_THESE = frozenset({"model", "stream", "messages", "prompt", "input", "previous_response_id"})
"""Whom the request is for, what it says, and the form in which its client reads the answer."""
_NULL = b"null"
_Path = tuple[str, ...]
_Members = dict[str, msgspec.Raw]


class NoObject(ValueError):
    """A value must be set inside something that is no object; the text is for the client."""


@dataclass(frozen=True)
class Parameters:
    """What is set for one name; values are JSON."""

    defaults: tuple[tuple[_Path, bytes], ...] = ()
    forced: tuple[tuple[_Path, bytes], ...] = ()
    removed: tuple[_Path, ...] = ()

    def apply(self, body: bytes) -> bytes:
        """The JSON object `body` with these; the same bytes where nothing is to be changed.

        Raises:
            NoObject: A forced member's parent is there and no object.
            msgspec.MsgspecError: It cannot be read.
        """
        members = decode_members(body)
        changed = bool(self.forced or self.removed)
        for path in self.removed:
            _remove(members, path)
        for path, value in self.defaults:
            changed = _put(members, path, msgspec.Raw(value), force=False) or changed
        for path, value in self.forced:
            _put(members, path, msgspec.Raw(value), force=True)
        return msgspec.json.encode(members) if changed else body


def parameters(defaults: Mapping[str, Any], forced: Mapping[str, Any], removed: Iterable[str]) -> Parameters | None:
    """These, ready to be applied; None for none."""
    made = Parameters(_ready(defaults), _ready(forced), tuple(map(_path, removed)))
    return made if made != Parameters() else None


def faults(defaults: Mapping[str, Any], forced: Mapping[str, Any], removed: Iterable[str]) -> list[str]:
    """What is wrong with them, in plain words."""
    lines = []
    paths = sorted(_path(name) for name in (*defaults, *forced, *removed))
    for path in paths:
        name = ".".join(path)
        if not all(path):
            lines.append(f"{name!r} must be names with single dots between them")
        elif path[0].lower() in NOT_THESE:
            lines.append(
                f"{path[0]!r} is the client's and stays as it is (to lead to another model, see split and fallbacks)"
            )
    # Sorted, what lies inside of a path follows it.
    lines += [
        f"{'.'.join(one)!r} and {'.'.join(other)!r} are about the same member: name it once"
        for one, other in pairwise(paths)
        if other[: len(one)] == one
    ]
    for name, value in (*defaults.items(), *forced.items()):
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            lines.append(f"{name!r} must have a value that JSON can say")
    return lines


def differing(before: bytes, after: bytes) -> list[str]:
    """Names of the members of one JSON object that are others in the next, or not there."""
    one, other = decode_members(before), decode_members(after)
    return [name for name in one | other if one.get(name) != other.get(name)]


def _path(name: str) -> _Path:
    return tuple(name.split("."))


def _ready(values: Mapping[str, Any]) -> tuple[tuple[_Path, bytes], ...]:
    return tuple((_path(name), msgspec.json.encode(value)) for name, value in values.items())


def _remove(members: _Members, path: _Path) -> None:
    name, inside = path[0], path[1:]
    if not inside:
        members.pop(name, None)
    elif name in members and (inner := _members_of(members[name])) is not None:
        _remove(inner, inside)
        members[name] = msgspec.Raw(msgspec.json.encode(inner))


def _put(members: _Members, path: _Path, value: msgspec.Raw, *, force: bool) -> bool:
    """Set one member; returns whether it did."""
    name, inside = path[0], path[1:]
    present = members.get(name)
    if present is not None and memoryview(present) == _NULL:
        present = None
    if not inside:
        if present is not None and not force:
            return False
        members[name] = value
        return True
    inner = _members_of(present) if present is not None else {}
    if inner is None:
        if force:
            raise NoObject(f"'{name}' must be an object")
        return False
    if not _put(inner, inside, value, force=force):
        return False
    members[name] = msgspec.Raw(msgspec.json.encode(inner))
    return True


def _members_of(value: msgspec.Raw) -> _Members | None:
    """The members of an object; None for anything else."""
    return decode_members(value) if bytes(memoryview(value)[:1]) == b"{" else None
