"""PURE. How long a fleet takes to write a token, learned from answers that come in one piece.

Such an answer hides when its prompt was read. But a request that found its replica without work took

    duration = seconds per byte · uncached bytes + seconds per token · tokens written

and least squares over several such requests, older ones fading, tell both factors. Then every answer's end says when its
prompt was read.
"""

from typing import Final

_FADE: Final = 0.99
"""Per answer, so that about a hundred are remembered. Chosen: an engine's time per token changes with its load."""
_LEAST_ANSWERS: Final = 6.0
"""Chosen: three for each of the two unknowns."""
_LEAST_SPREAD: Final = 0.01
"""Of the determinant, relative to the largest it could be. Below it bytes and tokens went together so closely that least
squares cannot tell their shares apart; it is 1 - r², with r their
correlation about the origin, so above 0.995 nothing is learned. Chosen."""


class Writing:
    """The sums of the least squares."""

    def __init__(self) -> None:
        self._bytes2 = self._bytes_tokens = self._tokens2 = self._bytes_s = self._tokens_s = self._count = 0.0
        self.s_per_token: float | None = None
        """Seconds per token written; None while it is not known."""

    def note(self, duration_s: float, uncached_bytes: float, tokens: float) -> None:
        """One answer by a replica that had nothing else to do."""
        self._bytes2 = self._bytes2 * _FADE + uncached_bytes * uncached_bytes
        self._bytes_tokens = self._bytes_tokens * _FADE + uncached_bytes * tokens
        self._tokens2 = self._tokens2 * _FADE + tokens * tokens
        self._bytes_s = self._bytes_s * _FADE + uncached_bytes * duration_s
        self._tokens_s = self._tokens_s * _FADE + tokens * duration_s
        self._count = self._count * _FADE + 1.0
        most = self._bytes2 * self._tokens2
        determinant = most - self._bytes_tokens * self._bytes_tokens
        if self._count < _LEAST_ANSWERS or determinant < _LEAST_SPREAD * most:
            return
        s_per_token = (self._bytes2 * self._tokens_s - self._bytes_tokens * self._bytes_s) / determinant
        self.s_per_token = max(0.0, s_per_token)
