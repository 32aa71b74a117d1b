"""PURE. How many retries the requests in flight may have made: 20 % of their number, at least three (FAILURES.md D8).

Counted over the life of a request, not of a retry: else a second round of retries would be free.
"""

RETRY_SHARE = 0.2
RETRY_FLOOR = 3


def budget_allows(retrying: int, in_flight: int) -> bool:
    """True when one more retry may start when the `in_flight` requests have made `retrying` so far."""
    return retrying < max(RETRY_FLOOR, RETRY_SHARE * in_flight)
