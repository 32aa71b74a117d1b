"""PURE: how long to wait before a server is started again, and when starting it again has become pointless."""

from collections.abc import Sequence

JITTER = 0.2
"""Each delay is stretched or shortened by up to this share, so that a node's servers do not start in step (B19)."""
LARGEST_EXPONENT = 30


def delay_s(failures: int, *, first_s: float, last_s: float, chance: float) -> float:
    """Seconds before the next start: `first_s` doubled per failure, at most `last_s`, with jitter.

    Args:
        failures: Starts in a row that did not last; 0 for the first exit.
        first_s: Delay after the first exit.
        last_s: Upper bound before the jitter.
        chance: A random number in [0, 1); 0.5 means no jitter.
    """
    base_s = min(first_s * 2.0 ** min(failures, LARGEST_EXPONENT), max(first_s, last_s))
    return base_s * (1.0 + JITTER * (2.0 * chance - 1.0))


def recent(exits: Sequence[float], *, now: float, window_s: float) -> tuple[float, ...]:
    """The exits of the last `window_s` seconds."""
    return tuple(at for at in exits if now - at < window_s)
