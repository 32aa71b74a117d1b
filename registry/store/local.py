"""The part of the contract that every store of one registry answers alike."""

from collections.abc import AsyncGenerator

from registry.core.store import Event


class LocalStore:
    """The part of the contract that a store of one registry answers in one way."""

    shared = False

    def renew(self, _name: str) -> bool:
        """The catalogue keeps the leases; heartbeats are not written."""
        return True

    def accept(self, _event: Event) -> bool:
        """There are no events."""
        return False

    async def look(self, _name: str) -> None:
        """The catalogue knows it all."""

    async def events(self) -> AsyncGenerator[Event]:
        """Nobody else writes here."""
        nothing: tuple[Event, ...] = ()
        for event in nothing:
            yield event
