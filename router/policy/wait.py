"""PURE. How long a replica's answers let wait, and from when on a longer wait is not explained by that any more.

Mean and deviation, and the limit above them, are those of TCP's retransmission timer (Jacobson and Karels, 1988; RFC 6298):
another's pace, learned from few samples, and quick to follow.
"""

_MEAN_GAIN, _DEVIATION_GAIN, _DEVIATIONS = 1 / 8, 1 / 4, 4.0


class Wait:
    """The waits of one replica for one kind of answer."""

    def __init__(self) -> None:
        self.count = 0
        self._mean_s = 0.0
        self._deviation_s = 0.0

    def note(self, seconds: float) -> None:
        """One wait is over."""
        if not self.count:
            self._mean_s, self._deviation_s = seconds, seconds / 2
        else:
            self._deviation_s += _DEVIATION_GAIN * (abs(seconds - self._mean_s) - self._deviation_s)
            self._mean_s += _MEAN_GAIN * (seconds - self._mean_s)
        self.count += 1

    @property
    def limit_s(self) -> float:
        """The longest wait that is usual; 0 before the first one."""
        return self._mean_s + _DEVIATIONS * self._deviation_s
