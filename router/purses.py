"""PURE. What a worker holds of the limits of one key, and what a request takes of it (docs/adr/0016).

A request takes one of `requests`, one of `in_flight`, and of `tokens` what it may come to: its prompt, by its bytes, and
`max_tokens` or what answers to this key came to lately. At its end it gives back what it did not use.
"""

import re
from typing import Final

from common.wire.leases import IN_FLIGHT, REQUESTS, TOKENS, LeaseGrant, LeaseRow
from router.policy.usage import UNTOLD, Usage

FIRST_LENGTH: Final = 256
"""Tokens of an answer, while none was seen. Chosen."""
FIRST_TOKENS_PER_BYTE: Final = 0.25
"""Of a prompt likewise: English has four bytes to a token."""
FADE: Final = 0.05
"""What is learned rises at once and falls slowly: what was taken too little is an overshoot, too much is given back."""
IDLE_BEATS: Final = 2
"""A limit of which nothing was taken for so many beats is given back."""
AHEAD: Final = 4
"""A worker holds what it takes in about so many beats."""
HEAD_BYTES, TAIL_BYTES = 64, 160
"""Where a body is looked at for `max_tokens`: what is missed makes an estimate, and no more, too large."""
_ROUND_UP: Final = 0.999
_MOST = re.compile(rb'"max_(?:completion_|output_|new_)?tokens"\s*:\s*(\d{1,9})')


def most_tokens(body: bytes) -> int | None:
    """How long the answer to a request may be at most, if its body says so at its beginning or its end, as clients' do."""
    at = body.rfind(b'"max_', max(0, len(body) - TAIL_BYTES))
    if at < 0:
        at = body.find(b'"max_', 0, HEAD_BYTES)
    told = _MOST.match(body, at) if at >= 0 else None
    return int(told[1]) if told is not None else None


class Purse:
    """What is held of one limit."""

    def __init__(self, limit: int) -> None:
        self.most = limit
        """The smallest of its limits."""
        self.limit = limit
        """That of which the least is left, as the lender said last."""
        self.free = 0
        self.bound = 0
        """Taken by requests under way, which may give it back."""
        self.used = 0
        """Since the worker began."""
        self.left = limit
        """What the lender has, as it said last."""
        self.full_at = 0.0
        self.none_until = 0.0
        """The lender said that there is no more until then, in seconds of the worker's clock."""
        self.low = -1
        """With so little free, more is asked for; -1: it was."""
        self._reset_s = -1
        self._fields = b""
        self._taken = 0
        self._recent = 0
        self._idle = 0

    def take(self, amount: int) -> None:
        """A request takes so much."""
        self.free -= amount
        self._taken += amount

    def row(self, need: int) -> LeaseRow:
        """What is told of it."""
        lacks = need > 0 or self.free <= self.low
        want = need + AHEAD * max(self._recent, self._taken) if lacks else 0
        if lacks:
            self.low = -1
        return LeaseRow(held=self.free + self.bound, used=self.used, need=need, want=want)

    def grant(self, grant: LeaseGrant | None, now: float) -> None:
        """Take the answer; None: the lender knows no such limit."""
        if grant is None:
            self.none_until = now + 1.0
            return
        self.free += grant.granted
        self.left = grant.left
        self.limit = grant.limit or self.limit
        self.full_at = now + grant.full_in_s
        self._reset_s = -1
        self.none_until = now + grant.again_in_s if grant.again_in_s else 0.0
        self.low = self.free // 2 if self.free > 1 else -1

    def beat(self) -> None:
        """Time has passed: give back what is not needed."""
        self._idle = 0 if self._taken else self._idle + 1
        self._recent, self._taken = self._taken, 0
        if self._idle >= IDLE_BEATS or (self._idle and not self.left):
            self.free = 0

    def header_lines(self, unit: str, now: float) -> bytes:
        """OpenAI's response fields; what is the same for a second is made once."""
        reset_s = max(0, int(self.full_at - now + _ROUND_UP))
        if reset_s != self._reset_s:
            self._reset_s = reset_s
            self._fields = (
                f"x-ratelimit-limit-{unit}: {self.limit}\r\nx-ratelimit-reset-{unit}: {reset_s}s\r\n"
                f"x-ratelimit-remaining-{unit}: "
            ).encode()
        return b"%b%d\r\n" % (self._fields, self.left + self.free)

    def give_back(self, bound: int, unused: int) -> None:
        """A request that had taken `bound` is over, and leaves `unused`; below 0 it used more than it had taken."""
        self.bound = max(0, self.bound - bound)
        self.free = max(0, self.free + unused)


class Charged:
    """What is taken for one request: `tokens`, for a prompt of `prompt_bytes` and so many `choices`."""

    def __init__(self, tokens: int, prompt_bytes: int, choices: int) -> None:
        self.tokens = tokens
        self.prompt_bytes = prompt_bytes
        self.choices = choices


class Account:
    """One key's.

    Args:
        requests: The limit in a minute; None: there is none.
        tokens: The smallest of its limits.
        in_flight: Of requests at once.
    """

    def __init__(self, requests: int | None, tokens: int | None, in_flight: int | None) -> None:
        self.requests = Purse(requests) if requests is not None else None
        self.tokens = Purse(tokens) if tokens is not None else None
        self.in_flight = Purse(in_flight) if in_flight is not None else None
        self.touched = False
        """Something changed since the last beat."""
        self._length = float(FIRST_LENGTH)
        self._tokens_per_byte = FIRST_TOKENS_PER_BYTE
        self._has_learned = False

    def charge(self, body: bytes, prompt_bytes: int, choices: int) -> "Charged":
        """What a request may come to; no more tokens than the limit, so that one beyond it waits for all of that."""
        tokens = self.tokens
        if tokens is None:
            return Charged(0, prompt_bytes, choices)
        most = most_tokens(body)
        length = self._length if most is None else min(float(most), self._length)
        estimate = int(prompt_bytes * self._tokens_per_byte + length * choices)
        return Charged(max(1, min(tokens.most, estimate)), prompt_bytes, choices)

    def admit(self, cost: int) -> Purse | None:
        """Take what a request needs; or the purse that has too little, and nothing is taken."""
        requests, tokens, in_flight = self.requests, self.tokens, self.in_flight
        if requests is not None and requests.free < 1:
            return requests
        if tokens is not None and tokens.free < cost:
            return tokens
        if in_flight is not None:
            if in_flight.free < 1:
                return in_flight
            in_flight.take(1)
            in_flight.bound += 1
        if requests is not None:
            requests.take(1)
            requests.used += 1
        if tokens is not None:
            tokens.take(cost)
            tokens.bound += cost
        self.touched = True
        return None

    @property
    def is_low(self) -> bool:
        """More should be asked for, before a request has to wait."""
        requests, tokens = self.requests, self.tokens
        return (requests is not None and requests.free <= requests.low) or (
            tokens is not None and tokens.free <= tokens.low
        )

    def settle(self, request: "Charged", usage: Usage | None, pieces: int, *, answered: bool) -> bool:
        """A request is over; True when somebody else may wait for what it gives back.

        Args:
            request: What it had taken.
            usage: What its answer told.
            pieces: Those of its stream, each a token.
            answered: It was answered well; what such an answer does not tell is what was taken for it.
        """
        purse, in_flight = self.tokens, self.in_flight
        self.touched = True
        if purse is not None:
            tokens = request.tokens if answered else 0
            if usage is not None or pieces:
                prompt = usage.prompt if usage is not None else UNTOLD
                written = usage.written if usage is not None else UNTOLD
                tokens = prompt if prompt >= 0 else int(request.prompt_bytes * self._tokens_per_byte)
                tokens += written if written >= 0 else pieces
                self._learn(request, prompt, written)
            purse.give_back(request.tokens, request.tokens - tokens)
            purse.used += tokens
        if in_flight is None:
            return False
        in_flight.give_back(1, 1 if in_flight.left else 0)
        return not in_flight.left

    def _learn(self, request: "Charged", prompt: int, written: int) -> None:
        if prompt < 0 or written < 0:
            return
        length, fade = written / request.choices, FADE if self._has_learned else 1.0
        self._length = max(length, self._length + fade * (length - self._length))
        if request.prompt_bytes:
            ratio = min(prompt / request.prompt_bytes, 1.0)
            self._tokens_per_byte = max(ratio, self._tokens_per_byte + fade * (ratio - self._tokens_per_byte))
        self._has_learned = True

    def purses(self) -> list[tuple[str, Purse]]:
        """All that there are, by unit."""
        found = ((REQUESTS, self.requests), (TOKENS, self.tokens), (IN_FLIGHT, self.in_flight))
        return [(unit, purse) for unit, purse in found if purse is not None]

    def limit(self, other: "Account") -> None:
        """Have the limits of `other`, a new account of the same key."""
        self.requests = _limited(self.requests, other.requests)
        self.tokens = _limited(self.tokens, other.tokens)
        self.in_flight = _limited(self.in_flight, other.in_flight)

    def name_of(self, purse: Purse) -> str:
        """Which limit it is of."""
        return next(unit for unit, one in self.purses() if one is purse)

    def header_lines(self, now: float) -> bytes:
        """OpenAI's response fields."""
        lines = b"" if self.requests is None else self.requests.header_lines(REQUESTS, now)
        return lines if self.tokens is None else lines + self.tokens.header_lines(TOKENS, now)


def _limited(mine: Purse | None, new: Purse | None) -> Purse | None:
    if mine is None or new is None:
        return new
    mine.limit = mine.most = new.most
    mine.free = min(mine.free, new.limit)
    return mine
