"""The limits of keys in one worker: requests take from what it holds; what it lacks it asks its master for (docs/adr/0016).

At most one question is under way, so that whoever lends never hears of a state before his own last answer.
"""

from collections.abc import Callable, Iterable

from common.leases import limits_of
from common.wire.leases import IN_FLIGHT, REQUESTS, TOKENS, LeaseGrants, LeaseRow, LeaseRows
from router.keys import Key
from router.proxy.sides import ProxiedRequest
from router.purses import Account

WAIT_S = 3.0
"""A request waits so long for a master that does not answer; that asks its registries for less."""
BEAT_SWEEPS = 2


def _nobody_to_ask(rows: LeaseRows) -> None:
    """A worker has its master."""


def _now_is_soon(call: Callable[[], None]) -> None:
    call()


def account_of(key: Key) -> Account | None:
    """A new account of a key, if it has a limit."""
    limits = limits_of(key)
    least = {unit: min(windows.values()) for unit, windows in limits.items()}
    return Account(least.get(REQUESTS), least.get(TOKENS), least.get(IN_FLIGHT)) if least else None


class Budgets:
    """All limited keys' accounts.

    Args:
        now: Monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.accounts: dict[str, Account] = {}
        self.ask: Callable[[LeaseRows], None] = _nobody_to_ask
        """Tells the master, which answers by `take`."""
        self.soon: Callable[[Callable[[], None]], object] = _now_is_soon
        """Calls back in the next turn of the loop."""
        self._now = now
        self._lines: dict[str, list[tuple[ProxiedRequest, float]]] = {}
        """Requests that wait, by key, and since when."""
        self._told: dict[str, dict[str, LeaseRow]] = {}
        self._asked: tuple[str, ...] = ()
        self._is_asking = False
        self._asks_again = False
        self._is_due = False
        self._sweeps = 0

    def set_keys(self, keys: Iterable[Key]) -> None:
        """Have the limits of `keys`; what is held of one that stays is kept."""
        before, self.accounts = self.accounts, {}
        for key in keys:
            new = account_of(key)
            if new is None or key.name in self.accounts:
                continue
            old = before.get(key.name)
            if old is not None:
                old.limit(new)
            self.accounts[key.name] = old or new
        self._told = {name: rows for name, rows in self._told.items() if name in self.accounts}
        if self._lines:
            self.ask_soon()

    @property
    def has_line(self) -> bool:
        """True while some request waits."""
        return bool(self._lines)

    def wait(self, name: str, request: ProxiedRequest) -> None:
        """Have a request wait until there is enough for it, or it is known that there is none."""
        self._lines.setdefault(name, []).append((request, self._now()))
        self.ask_soon()

    def ask_soon(self) -> None:
        """In the next turn of the loop, let in who can be by then, and ask with everything that has changed."""
        if not self._is_due:
            self._is_due = True
            self.soon(self._turn)

    def _turn(self) -> None:
        self._is_due = False
        for name in list(self._lines):
            self._serve(name)
        if self._is_asking:
            self._asks_again = True
        else:
            self._ask()

    def _ask(self) -> None:
        self._asks_again = False
        asked: LeaseRows = {}
        for name, account in self.accounts.items():
            if account.touched or name in self._lines or name in self._told:
                rows = self._rows(name, account)
                if rows != self._told.get(name) or any(row.want for row in rows.values()):
                    asked[name] = rows
        if asked:
            self._told.update(asked)
            self._asked = tuple(asked)
            self._is_asking = True
            self.ask(asked)

    def _rows(self, name: str, account: Account) -> dict[str, LeaseRow]:
        account.touched = False
        costs = [
            request.charged.tokens
            for request, _ in self._lines.get(name, ())
            if request.awaits_budget and request.charged
        ]
        rows = {}
        for unit, purse in account.purses():
            need = sum(costs) if unit == TOKENS else len(costs)
            rows[unit] = purse.row(max(0, need - purse.free))
        return rows

    def take(self, grants: LeaseGrants, *, closed: bool) -> None:
        """The answer to what was asked; `closed`: nobody knows what is left, and without that nobody is let in."""
        now = self._now()
        asked, self._asked, self._is_asking = self._asked, (), False
        for name in asked:
            account = self.accounts.get(name)
            if account is None:
                continue
            given = grants.get(name, {})
            if any(grant.granted for grant in given.values()):
                account.touched = True
            elif not any(row.held for row in self._told.get(name, {}).values()):
                self._told.pop(name, None)
            for unit, purse in account.purses():
                purse.grant(given.get(unit), now)
            self._serve(name, closed=closed and name not in grants)
        if self._asks_again or self._lines:
            self._ask()

    def _serve(self, name: str, *, closed: bool = False) -> None:
        """Let in who can be; who cannot be told so waits on."""
        waits: list[tuple[ProxiedRequest, float]] = []
        for request, since in self._lines.pop(name, ()):
            if not request.awaits_budget:
                continue
            if closed:
                request.refuse_unknown()
            elif not request.enter():
                waits.append((request, since))
        if waits:
            self._lines[name] = waits + self._lines.get(name, [])

    def sweep(self, now: float) -> None:
        """Give back, tell, and end what has waited for too long; four times a second."""
        if not self.accounts and not self._lines:
            return
        for name, line in list(self._lines.items()):
            for request, since in line:
                if request.awaits_budget and now - since > WAIT_S:
                    request.refuse_unknown()
            self._lines[name] = [ticket for ticket in line if ticket[0].awaits_budget]
            if not self._lines[name]:
                del self._lines[name]
        self._sweeps += 1
        if self._sweeps % BEAT_SWEEPS == 0:
            for account in self.accounts.values():
                for _, purse in account.purses():
                    purse.beat()
            self.ask_soon()

    def leave(self) -> None:
        """Give back all that is free: the worker ends."""
        for account in self.accounts.values():
            for _, purse in account.purses():
                purse.free = 0
            account.touched = True
        self._is_asking = False
        self._ask()
