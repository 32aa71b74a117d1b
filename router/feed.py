"""What master and workers say to each other, over one socket pair each: a length, then MessagePack.

The master sends the setup once (settings and who the worker is), then a table, then what changes in it. A worker sends its
status every second, and as soon as a request waits for a cold model; when that stops the worker hangs, and when the stream
ends it is dead.
"""

import asyncio
import struct
from math import inf

import msgspec

from common.http.tls import NOTHING, TlsMaterial
from common.tokens import FlatRow
from common.wire.deployment import ModelState
from common.wire.leases import LeaseGrants, LeaseRows
from router.keys import Key
from router.model import Endpoint, Table

MESSAGE_LIMIT_BYTES = 64 << 20
_LENGTH = struct.Struct("<I")


class Certificates(msgspec.Struct, frozen=True, tag="certificates"):
    """What a worker shows and believes, at its start and when that changes: it reads no files.

    `ca` is the PEM of what replicas on https are checked against; None for the system's CAs.
    """

    material: TlsMaterial = NOTHING
    ca: str | None = None


class WorkerSetup(msgspec.Struct, frozen=True, tag="setup"):
    """Who a worker is; the first message it gets."""

    index: int
    workers: int
    block: int
    """Its own in the shared counters, of two for each worker."""
    slots: int
    settings: str
    """The router's, as JSON."""
    control_path: str
    certificates: Certificates
    usage_folder: str = ""
    """Where a worker whose master is gone leaves what it counted."""


class Endpoints(msgspec.Struct, frozen=True, tag="endpoints"):
    """A whole table; a worker's first one."""

    version: int
    endpoints: tuple[Endpoint, ...]


class Changes(msgspec.Struct, frozen=True, tag="changes"):
    """What is otherwise in a new table; `gone` are names."""

    version: int
    changed: tuple[Endpoint, ...]
    gone: tuple[str, ...] = ()

    @classmethod
    def between(cls, before: Table, after: Table) -> "Changes":
        """An endpoint in which nothing changed is the very same in both."""
        old = {one.name: one for one in before.endpoints}
        changed = tuple(one for one in after.endpoints if old.pop(one.name, None) is not one)
        return cls(after.version, changed, tuple(old))

    def made_in(self, before: Table) -> Table:
        """The new table, in the order of the sender's: what has another life is last."""
        rows = {one.name: one for one in before.endpoints}
        for name in self.gone:
            del rows[name]
        for one in self.changed:
            if one.name in rows and rows[one.name].id != one.id:
                del rows[one.name]
            rows[one.name] = one
        return Table.of(self.version, tuple(rows.values()))


class Keys(msgspec.Struct, frozen=True, tag="keys"):
    """All API keys; none at all means that nobody needs one, unless they are `required`."""

    keys: tuple[Key, ...]
    required: bool = False


class Forgive(msgspec.Struct, frozen=True, tag="forgive"):
    """An endpoint that was out of reach is back: what is held against it holds no more."""

    endpoint: str


class Retire(msgspec.Struct, frozen=True, tag="retire"):
    """Stop accepting, finish what is under way, end; said again, with less time."""

    hand_over: bool = False
    """There is a successor: it gets the clients' connections as they become idle. Else they are closed."""
    within_s: float = inf
    """How long what is under way may take from now on."""


class Standings(msgspec.Struct, frozen=True, tag="standings"):
    """How deployments' models stand now, as far as that changed; all of them for a new worker."""

    changed: tuple[ModelState, ...]
    gone: tuple[str, ...] = ()
    lost: bool = False
    """The registry does not answer: what it said last is in force."""


class ModelWaits(msgspec.Struct, frozen=True):
    """What a worker has of one deployment's model: how many wait now, and what it saw of held ones since its last word."""

    waiting: int
    served: int = 0
    waited_s: float = 0.0
    refused: int = 0


class WorkerStatus(msgspec.Struct, frozen=True, tag="status"):
    """A worker is alive: sent once it serves and every second from then on."""

    version: int
    connections: int
    exchanges: int
    compiled: bool
    unreached: dict[str, tuple[int, str]] = {}
    """By endpoint id: requests in a row that could not reach it, and why the last could not."""
    waits: dict[str, ModelWaits] = {}
    """By model of a deployment; those of which there is something to say."""


class AdapterWanted(msgspec.Struct, frozen=True, tag="adapter"):
    """A worker has requests for an adapter that is loaded nowhere, and would send them to `endpoint` (an id)."""

    adapter: str
    endpoint: str


class TokensUsed(msgspec.Struct, frozen=True, tag="tokens"):
    """What a worker counted since its last word."""

    rows: list[FlatRow]


class Leases(msgspec.Struct, frozen=True, tag="leases"):
    """What a worker has of keys' limits, and what it lacks; it says no more until it has the answer."""

    rows: LeaseRows


class Grants(msgspec.Struct, frozen=True, tag="grants"):
    """The answer; `closed`: nobody knows what is left of limits that are not in it."""

    grants: LeaseGrants
    closed: bool = False


Message = (
    WorkerSetup
    | Certificates
    | Endpoints
    | Changes
    | Keys
    | Standings
    | Forgive
    | Retire
    | WorkerStatus
    | AdapterWanted
    | TokensUsed
    | Leases
    | Grants
)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


async def read(reader: asyncio.StreamReader) -> Message | None:
    """The next message, or None when the other side is gone."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MESSAGE_LIMIT_BYTES:
            raise ValueError(f"a message of {length} bytes on the feed")
        message: Message = _decode(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return message


def write(writer: asyncio.StreamWriter, message: Message) -> None:
    """Queue a message; a side that is gone is noticed by `read`."""
    if writer.is_closing():  # uvloop's transport would raise, and end the whole router with it
        return
    payload = _encode(message)
    writer.write(_LENGTH.pack(len(payload)) + payload)
