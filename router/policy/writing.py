"""PURE. How long a fleet takes to write a token, learned from answers that come in one piece.

Such an answer hides when its prompt was read. But a request that found its replica without work took

    duration = seconds per byte · uncached bytes + seconds per token · tokens written

and least squares over several such requests, older ones fading, tell both factors. Then every answer's end says when its
prompt was read.
"""

_FADE = 0.99
_LEAST = 6.0
_LEAST_SPREAD = 0.01
"""Of the determinant, relative to the largest it could be: below, bytes and tokens went together too closely."""


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
        if self._count < _LEAST or determinant < _LEAST_SPREAD * most:
            return
        found = (self._bytes2 * self._tokens_s - self._bytes_tokens * self._bytes_s) / determinant
        self.s_per_token = max(0.0, found)
