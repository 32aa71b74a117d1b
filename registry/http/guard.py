"""Who may do what: read, register and admin tokens from 0600 files (docs/faults.md G2).

Without token files everybody may do everything, which is why such a registry listens on loopback only. With them, every
call but `GET /health` and `GET /ui` needs one: a read token reads, a register token also changes records whose names
begin with its prefix, an admin token does everything.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from common.exits import ConfigurationError
from common.http.access import bearer_matches, read_token
from common.http.errors import ApiError

FAILURES_PER_S = 10
"""Wrong tokens that one address may offer in a second."""
ADDRESSES_REMEMBERED = 4096


class Level(IntEnum):
    """What a token allows; each level includes the ones below."""

    READ = 1
    REGISTER = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Grant:
    """What a caller may do. `prefix` limits the names that it may change."""

    level: Level
    prefix: str = ""

    def covers(self, needed: Level, name: str) -> bool:
        """Whether `check` would let it pass."""
        return self.level >= needed and (needed is Level.READ or name.startswith(self.prefix))

    def check(self, needed: Level, name: str | None) -> None:
        """Refuse what goes beyond the grant.

        Raises:
            ApiError: 403.
        """
        if self.level < needed:
            raise ApiError(403, f"this token may {self.level.name.lower()}; the call needs {needed.name.lower()}")
        if needed > Level.READ and name is not None and not name.startswith(self.prefix):
            raise ApiError(403, f"this token may change names that begin with {self.prefix!r} only")


EVERYTHING = Grant(Level.ADMIN)


@dataclass(slots=True)
class Guard:
    """Tokens and their grants; empty means open.

    Args:
        grants: Each token with what it allows.
        monotonic: Seconds, for the limit on wrong tokens.
    """

    grants: Sequence[tuple[str, Grant]] = ()
    monotonic: Callable[[], float] = time.monotonic
    _failures: dict[str, tuple[int, int]] = field(default_factory=dict)

    def admit(self, authorization: str | None, address: str) -> Grant:
        """The grant of the token offered; compares with every token, so that time tells nothing.

        Raises:
            ApiError: 401 for no token or a wrong one, 429 for too many wrong ones.
        """
        granted = self._granted(authorization)
        if granted is None:
            self._count_failure(address)
            raise ApiError(401, "a valid bearer token is needed", headers={"WWW-Authenticate": "Bearer"})
        return granted

    def grants_to(self, authorization: str | None, needed: Level, name: str) -> bool:
        """Whether the token offered allows a change of `name`; a wrong one is not counted."""
        granted = self._granted(authorization)
        return granted is not None and granted.covers(needed, name)

    def _granted(self, authorization: str | None) -> Grant | None:
        if not self.grants:
            return EVERYTHING
        granted = None
        for token, grant in self.grants:
            if bearer_matches(authorization, token):
                granted = grant
        return granted

    def _count_failure(self, address: str) -> None:
        second = int(self.monotonic())
        then, count = self._failures.get(address, (second, 0))
        count = count + 1 if then == second else 1
        if len(self._failures) >= ADDRESSES_REMEMBERED:
            self._failures.clear()
        self._failures[address] = (second, count)
        if count > FAILURES_PER_S:
            raise ApiError(429, "too many wrong tokens", headers={"Retry-After": "1"})


def make_guard(read: Sequence[str], register: Sequence[str], admin: Sequence[str]) -> Guard:
    """The guard of the token files given; a register token's file may be preceded by `PREFIX=`.

    Raises:
        ConfigurationError: A file is unusable, a token has two grants, or nobody could register.
    """
    grants: list[tuple[str, Grant]] = []
    for level, files in ((Level.READ, read), (Level.REGISTER, register), (Level.ADMIN, admin)):
        for text in files:
            prefix, separator, path = text.rpartition("=") if level is Level.REGISTER else ("", "", text)
            grants.append((read_token(Path(path)), Grant(level, prefix if separator else "")))
    tokens = [token for token, _ in grants]
    if len(set(tokens)) != len(tokens):
        raise ConfigurationError("token files: two of them hold the same token")
    if grants and all(grant.level is Level.READ for _, grant in grants):
        raise ConfigurationError("--read-token-file alone lets nobody register; add --register-token-file")
    return Guard(grants)
