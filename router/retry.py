"""PURE. How many retries may run at once: 20 % of the requests in flight, at least three (FAILURES.md D8)."""

RETRY_SHARE = 0.2
RETRY_FLOOR = 3


def budget_allows(retrying: int, in_flight: int) -> bool:
    """True when one more retry may start while `retrying` are under way among `in_flight` requests."""
    return retrying < max(RETRY_FLOOR, RETRY_SHARE * in_flight)
