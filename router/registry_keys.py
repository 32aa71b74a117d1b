"""The API keys that the registry keeps: followed, and kept on disk for a router that starts while every registry is down."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import structlog

from common.atomic_file import read_bounded, write_atomic
from common.discovery.registry_client import RegistryClient, RegistryError, RegistryUnavailable
from common.wire.keys import KeyRecord, RouterKeys
from router.keys import Key

log = structlog.get_logger(__name__)
WAIT_S = 20
"""A call without a change ends after so long, and is made again."""
AGAIN_S = 1.0
REFUSED_S = 10.0
FILE_LIMIT_BYTES = 64 << 20


class RegistryKeys:
    """What the registry said last.

    Args:
        path: Where it is kept, 0600.
        tell: Called when it says something else.
    """

    def __init__(self, path: Path, tell: Callable[[], None]) -> None:
        self._path = path
        self._tell = tell
        self._told = RouterKeys(version="", keys=[])
        self.first_answer = asyncio.Event()

    def load(self) -> None:
        """What an earlier router was told last."""
        try:
            self._told = msgspec.json.decode(read_bounded(self._path, limit_bytes=FILE_LIMIT_BYTES), type=RouterKeys)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:  # msgspec's are ValueErrors
            log.warning("keys.not_loaded", path=str(self._path), reason=str(error))

    def beside(self, own: Iterable[Key]) -> tuple[Key, ...]:
        """All keys: `own`, of the router's file, and those of the registry that have no name and no secret of them."""
        own = tuple(own)
        taken = {key.name for key in own} | {key.sha256.lower() for key in own}
        told = (key for record in self._told.keys for key in _keys_of(record))
        return own + tuple(key for key in told if key.name not in taken and key.sha256 not in taken)

    async def follow(self, client: RegistryClient) -> None:
        """Hear of every change, for ever."""
        lost = False
        while True:
            try:
                told = await client.keys(self._told.version, WAIT_S)
            except RegistryError as error:
                if not lost:
                    log.warning("keys.not_followed", reason=str(error), known=len(self._told.keys))
                lost = True
                self.first_answer.set()
                await asyncio.sleep(AGAIN_S if isinstance(error, RegistryUnavailable) else REFUSED_S)
                continue
            lost = False
            if told.version != self._told.version:
                self._told = told
                self._tell()
                log.info("keys.taken", keys=len(told.keys))
                await asyncio.to_thread(self._save, told)
            self.first_answer.set()

    def _save(self, told: RouterKeys) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, msgspec.json.encode(told))
        except OSError as error:
            log.warning("keys.not_saved", path=str(self._path), reason=str(error))


def _keys_of(record: KeyRecord) -> Iterator[Key]:
    """The key, by its secret and by the one before while that is taken."""
    members = {name: getattr(record, name) for name in Key.__struct_fields__ if hasattr(record, name)}
    yield Key(**members)
    if record.old_sha256 is not None and record.old_secret_until is not None:
        ends = [moment for moment in (record.expires_at, record.old_secret_until) if moment is not None]
        yield Key(**members | {"sha256": record.old_sha256, "expires_at": min(ends)})
