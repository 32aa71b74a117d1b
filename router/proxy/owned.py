"""The half of a request that is about a stored response: only the replica that made it, its owner, can answer.

Requests that name no response do not come by here.
"""

import asyncio
from collections.abc import Sequence

from router import dispatch
from router.model import Eligibility, Endpoint
from router.proxy import checks
from router.proxy.answering import AnsweredRequest
from router.proxy.engine import tag_of
from router.proxy.owner_search import search


class OwnedRequest(AnsweredRequest):
    """What `Exchange` is made on."""

    # These keep their defaults in most requests: class attributes cost nothing per request.
    owner_tag = 0
    """The owner's number; 0 for a request that is about no response."""
    _search: asyncio.Task[None] | None = None

    def go_on(self, owner: Endpoint | None) -> None:
        """Send the request where its model's name leads; `owner`: the one replica that can answer."""
        raise NotImplementedError

    def find_owner(self, response: str, candidates: Sequence[Endpoint]) -> None:
        """See which of `candidates` made `response`, asking them where that is not known; then go on, or answer."""
        engine = self._engine
        if not candidates and self.facts.model is not None:
            self.go_on(None)  # nobody serves the model: that is what the client has to know
            return
        self.dispatch.response = response
        owner = engine.by_tag.get(engine.owners.find(response))
        if owner is None and len(candidates) > 1:
            self._search = engine.scope.spawn("find-response", self._look_for(response, candidates))
            return
        if owner is None and candidates:
            owner = candidates[0]
        self._take_owner(owner if owner in candidates else None)

    def owner(self) -> Endpoint | None:
        """The owner as it is now; None after the client was told why it cannot be asked."""
        owner = self._engine.by_tag.get(self.owner_tag)
        if owner is None:
            self._tell_gone("the replica that made it is gone")
        elif owner.eligibility is Eligibility.DRAINING and not checks.names_response(self.head.operation):
            self._tell_gone("the replica that made it is leaving")  # it gets nothing new (D28)
        else:
            return owner
        return None

    def stop_looking(self) -> None:
        """Nobody waits for the answer any more."""
        if self._search is not None:
            self._search.cancel()
            self._search = None

    async def _look_for(self, response: str, candidates: Sequence[Endpoint]) -> None:
        engine = self._engine
        try:
            owner = await search(engine, self, response, candidates)
        except TimeoutError:
            self._search = None
            self.fail(dispatch.OWNER_UNKNOWN)
            return
        self._search = None
        if owner is not None:
            engine.owners.note(response, tag_of(owner), engine.by_tag)
        self._take_owner(owner)

    def _take_owner(self, owner: Endpoint | None) -> None:
        if owner is None:
            self._tell_gone("no replica has it")
        else:
            self.owner_tag = tag_of(owner)
            self.go_on(owner)

    def _tell_gone(self, reason: str) -> None:
        self.fail(dispatch.response_gone(self.dispatch.response or "", reason))
