"""The half of a request that is counted: against its key and the key's limits as it begins, and for everybody as it ends."""

from typing import Final

from router.admission import PRIORITIES, Priority
from router.keys import Key, Refusal
from router.policy.usage import Usage
from router.proxy import checks
from router.proxy.attempt import UpstreamAttempt
from router.proxy.timed import TimedRequest
from router.purses import Account

_CLIENT_ERROR: Final = 400
_NORMAL: Final = Priority.NORMAL
"""Read once: a class of `enum` looks a member up as if it might be missing."""


class ChargedRequest(TimedRequest):
    """What `Exchange` is made on."""

    # These keep their defaults in most requests: class attributes cost nothing per request.
    _priority = _NORMAL
    _shown: Key | None = None
    _account: Account | None = None
    """Whose limits it has taken from, until it is over."""

    def admitted(self) -> None:
        """Its key covers it: look for who can answer."""
        raise NotImplementedError

    def charge(self, key: Key) -> bool:
        """Count the request against its key; False when it has to wait for that, or is answered already.

        Raises:
            Rejected: The key does not cover its model.
        """
        engine, facts = self._engine, self.facts
        self._shown = key
        self.caller = self.key = key.name
        self._priority = PRIORITIES[key.priority]
        # A stored response is looked for where the key's models are.
        if not checks.names_response(self.head.operation) and not engine.keys.covers(key, facts.model):
            raise checks.reject(Refusal.MODEL)
        account = engine.budgets.accounts.get(key.name)
        if account is None:
            return True
        self.charged = account.charge(self.body, facts.prompt_bytes, facts.choices)
        if self._takes_from(account):
            if account.is_low:
                engine.budgets.ask_soon()
            return True
        if self.awaits_budget:
            engine.budgets.wait(key.name, self)
        return False

    def _takes_from(self, account: Account) -> bool:
        """True when it has what it needs. Else it waits for that, or is told that there is none."""
        assert self.charged is not None  # noqa: S101 - set before
        lacking = account.admit(self.charged.tokens)
        if lacking is None:
            self._account = account
            self.tells_more = True
            self.awaits_budget = False
            return True
        now = self._engine.now()
        self.awaits_budget = now >= lacking.none_until
        if not self.awaits_budget:
            self.fail(checks.out_of_budget(account, lacking, now))
        return False

    def enter(self) -> bool:
        """Take what it needs of its key's limits, which may have come, or gone altogether."""
        account = self._engine.budgets.accounts.get(self.key)
        if account is not None and not self._takes_from(account):
            return not self.awaits_budget
        self.awaits_budget = False
        self.admitted()
        return True

    def refuse_unknown(self) -> None:
        """Nobody tells what is left of its key's limits."""
        self.awaits_budget = False
        self.fail(checks.LIMITS_UNKNOWN)

    def account_for(self, attempt: UpstreamAttempt | None) -> None:
        """It is over, with `attempt` if it was sent: count it for whose turn is next, in the ledger, against its key's limits."""
        engine = self._engine
        usage, pieces = (None, 0) if attempt is None else (attempt.usage, attempt.pieces)
        answered = 0 < self._status < _CLIENT_ERROR
        if engine.reckoned:
            engine.end_share(self, usage, pieces)
        if engine.ledger is not None and attempt is not None and answered and not self.dispatch.is_own:
            operation = self.head.operation
            if operation is None or operation.response is None:  # a stored response was counted when it was made
                engine.ledger.note(self.key, self.facts.model or "", attempt.endpoint.name, usage, pieces)
        if self.charged is not None:
            self.awaits_budget = False
            self._give_back(usage, pieces, answered=answered)

    def _give_back(self, usage: Usage | None, pieces: int, *, answered: bool) -> None:
        """What it did not use."""
        account, self._account, budgets = self._account, None, self._engine.budgets
        if account is not None and self.charged is not None:
            frees = account.settle(self.charged, usage, pieces, answered=answered)
            if frees or budgets.has_line:
                budgets.ask_soon()

    def _more_lines(self) -> bytes:
        account, lines = self._account, super()._more_lines()
        return lines if account is None else lines + account.header_lines(self.started)
