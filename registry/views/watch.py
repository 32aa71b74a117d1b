"""The watch: every change to everybody who watches, with bounded memory each, and no brake on the writer.

A watcher's queue holds the latest line per name. When more names are pending than the queue may hold, the queue is
emptied and the watcher gets a snapshot instead (docs/faults.md C9). The history lets one that comes back catch up.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.paced import paced
from registry.core.catalogue import Catalogue, Entry, Revised
from registry.core.model import Upsert
from registry.views.render import Renderer

HISTORY_LIMIT = 4096
QUEUE_LIMIT = 2048


@dataclass(slots=True, eq=False)
class Subscriber:
    """One reader of changes. `resync` means that its next line must be a snapshot; `missed` comes before what is pending."""

    resync: bool
    missed: Sequence[Revised] = ()
    pending: dict[str, bytes] = field(default_factory=dict)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    dropped: int = 0
    closed: bool = False

    def offer(self, name: str, line: bytes) -> None:
        """Queue a line; the newest of a name replaces an older one and goes to the end."""
        if self.resync:
            return
        self.pending.pop(name, None)
        if len(self.pending) >= QUEUE_LIMIT:
            self.dropped += len(self.pending)
            self.pending.clear()
            self.resync = True
        else:
            self.pending[name] = line
        self.ready.set()


class TooManyWatchers(Exception):
    """There is no room for another watcher."""


class WatchHub:
    """Fans changes out to watchers and wakes long polls.

    Args:
        catalogue: For snapshots, epoch and revision.
        renderer: Encodes records.
        limit: Most watchers at once.
    """

    def __init__(self, catalogue: Catalogue, renderer: Renderer, *, limit: int) -> None:
        self._catalogue = catalogue
        self._renderer = renderer
        self.limit = limit
        self._watchers: set[Subscriber] = set()
        self._history: deque[Revised] = deque(maxlen=HISTORY_LIMIT)
        self._moved = asyncio.Event()
        self._waiting = 0
        self.resyncs = 0

    def __len__(self) -> int:
        return len(self._watchers) + self._waiting

    def publish(self, revised: Sequence[Revised]) -> None:
        """Tell everybody; called by the writer after each commit."""
        self._history.extend(revised)
        for item in revised:
            if not isinstance(item.change, Upsert):
                self._renderer.forget(item.change.name)
            if self._watchers:
                line = self._line(item)
                for watcher in self._watchers:
                    watcher.offer(item.change.name, line)
        if self._waiting:
            self._moved.set()
            self._moved = asyncio.Event()

    def subscribe(self, *, since: int | None, epoch: str | None) -> Subscriber:
        """Begin to watch after revision `since` of `epoch`, or with a snapshot when that cannot be joined on.

        Raises:
            TooManyWatchers: There is no room.
        """
        self._take_room()
        missed = self._missed(since, epoch)
        watcher = Subscriber(resync=missed is None, missed=tuple((missed or {}).values()))
        watcher.ready.set()
        self._watchers.add(watcher)
        return watcher

    def unsubscribe(self, watcher: Subscriber) -> None:
        """Stop watching."""
        self._watchers.discard(watcher)

    async def take(self, watcher: Subscriber) -> list[bytes]:
        """Everything that `watcher` has not got yet, as lines in pieces; empties its queue, which fills again meanwhile."""
        watcher.ready.clear()
        if watcher.resync:
            watcher.resync = False
            watcher.pending.clear()
            self.resyncs += watcher.dropped > 0
            watcher.dropped = 0
            return await self._snapshot()
        missed, watcher.missed = watcher.missed, ()
        lines = [self._line(item) async for item in paced(missed)]
        lines.append(b"".join(watcher.pending.values()))
        watcher.pending.clear()
        return lines

    def dismiss(self) -> None:
        """End every watch; who may still watch asks again and misses nothing."""
        for watcher in self._watchers:
            watcher.closed = True
            watcher.ready.set()

    def close(self) -> None:
        """End every watch and long poll: the registry stops."""
        self.dismiss()
        self._moved.set()

    def beat(self) -> bytes:
        """The line that says: alive, and nothing is missing up to this revision."""
        return self._head("beat") + b"}\n"

    async def wait_for_change(self, index: int, timeout_s: float) -> None:
        """Return once the revision differs from `index`, or after `timeout_s`.

        Raises:
            TooManyWatchers: There is no room.
        """
        if self._catalogue.revision != index:
            return
        self._take_room()
        self._waiting += 1
        try:
            await asyncio.wait_for(self._moved.wait(), timeout_s)
        except TimeoutError:
            return
        finally:
            self._waiting -= 1

    def _take_room(self) -> None:
        if len(self) >= self.limit:
            raise TooManyWatchers(f"{self.limit} watchers are the most")

    def _missed(self, since: int | None, epoch: str | None) -> dict[str, Revised] | None:
        """The latest change of each name after `since`, or None when not all of them are known."""
        now = self._catalogue.revision
        if since is None or since > now or epoch != self._catalogue.epoch:
            return None
        oldest = self._history[0].revision if self._history else now + 1
        if since + 1 < oldest:
            return None
        return {item.change.name: item for item in self._history if item.revision > since}

    def _head(self, kind: str, revision: int | None = None) -> bytes:
        shown = self._catalogue.revision if revision is None else revision
        return f'{{"type":"{kind}","epoch":"{self._catalogue.epoch}","revision":{shown}'.encode()

    async def _snapshot(self) -> list[bytes]:
        table = await self._renderer.table()
        return [self._head("snapshot", table.revision) + b',"services":', *table.services, b"}\n"]

    def _line(self, item: Revised) -> bytes:
        change = item.change
        if not isinstance(change, Upsert):
            gone = f',"name":"{change.name}","reason":"{change.reason}"}}\n'
            return self._head("delete", item.revision) + gone.encode()
        entry = self._catalogue.get(change.name)
        renewed_at = 0.0 if entry is None else entry.renewed_at
        shown = Entry(change.instance, renewed_at, item.revision)
        return self._head("put", item.revision) + b',"service":' + self._renderer.service(shown) + b"}\n"
