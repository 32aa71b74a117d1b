"""PURE. How much of a model each client has had: a virtual counter of tokens, for whose turn it is where requests wait.

The one with the least goes first, so that clients who always wait get equal parts, by weight, whatever the sizes of their
requests: the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). A client that
begins to wait is lifted to those that wait already, or, where nobody does, to the one who went last: nobody saves up a
claim while there was room for everyone. What a request will cost is reckoned when it goes, and put right when it is over.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from router.policy.usage import UNTOLD, Usage

CACHED_COST = 0.1
WRITTEN_COST = 2.0
"""Of one such token, where one of the prompt that is not cached costs 1; as prices of hosted models are."""
BYTES_PER_TOKEN = 4.0
WRITTEN_FIRST = 128.0
"""Tokens that a client's answer is taken to have before one was seen."""
_NEWEST = 0.2
"""Weight of the newest answer in the mean of a client's answers."""
CLIENTS_MOST = 4096
"""Of one model. Of more, the one whose last request is the oldest is forgotten."""


@dataclass(slots=True)
class _Account:
    served: float = 0.0
    """Tokens by their cost, over the client's weight."""
    weight: float = 1.0
    written: float = WRITTEN_FIRST
    """Tokens of its answers, in the mean."""


class Shares:
    """The accounts of one model's clients."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        """The one that asked last is at the end."""
        self._went_last = 0.0

    def lift(self, client: str, waiting: Iterable[str]) -> None:
        """`client` begins to wait, beside those who do already."""
        account = self._account(client)
        floor = min((self._account(one).served for one in waiting), default=self._went_last)
        account.served = max(account.served, floor)

    def least(self, waiting: Iterable[str]) -> str:
        """Whose turn it is; of equals the first."""
        return min(waiting, key=lambda client: self._account(client).served)

    def expected(self, client: str, prompt_bytes: int) -> float:
        """What a request of `client` will cost."""
        return prompt_bytes / BYTES_PER_TOKEN + WRITTEN_COST * self._account(client).written

    def begin(self, client: str, weight: float, cost: float) -> None:
        """A request goes to a replica; it is taken to cost so much."""
        account = self._account(client)
        self._accounts[client] = self._accounts.pop(client)
        account.weight = weight
        account.served += cost / weight
        self._went_last = account.served
        if len(self._accounts) > CLIENTS_MOST:
            del self._accounts[next(iter(self._accounts))]

    def end(self, client: str, reckoned: float, usage: Usage | None, pieces: int, prompt_bytes: int) -> None:
        """It is over; it was reckoned at `reckoned`. What its usage does not tell is taken from its bytes and pieces."""
        account = self._account(client)
        told = usage.prompt if usage is not None else UNTOLD
        prompt = told if told >= 0 else prompt_bytes / BYTES_PER_TOKEN
        cached = min(max(usage.cached, 0), prompt) if usage is not None else 0
        written = usage.written if usage is not None and usage.written >= 0 else pieces
        cost = prompt - cached + CACHED_COST * cached + WRITTEN_COST * written
        account.served += (cost - reckoned) / account.weight
        account.written += _NEWEST * (written - account.written)

    def _account(self, client: str) -> _Account:
        account = self._accounts.get(client)
        if account is None:
            account = self._accounts[client] = _Account()
        return account
