"""PURE. Who may be asked now: ready, lists the model, not ejected, not tried; fresh before suspect, then the panic."""

from collections.abc import Collection, Sequence

import msgspec

from router.model import Eligibility, Endpoint
from router.outlier import Outliers


class Choice(msgspec.Struct, frozen=True):
    """The candidates, best tier only, and whether they are only a last resort."""

    endpoints: Sequence[Endpoint]
    panic: bool = False


def choose_from(pool: Sequence[Endpoint], tried: Collection[str], outliers: Outliers, now: float) -> Choice:
    """Narrow `pool` (all endpoints of a model, or all of them) to candidates.

    Tiers: fresh and not ejected; suspect and not ejected; then, only for a first try, whoever is registered and not
    draining, even if ejected or down (the panic rule, docs/faults.md D6); but not who says itself that it does not run, where
    a deployment's requests wait for it.
    """
    fresh: list[Endpoint] = []
    suspect: list[Endpoint] = []
    for endpoint in pool:
        eligibility = endpoint.eligibility
        if endpoint.id in tried:
            continue
        if eligibility is Eligibility.FRESH:
            if outliers.admits(endpoint, now):
                fresh.append(endpoint)
        elif eligibility is Eligibility.SUSPECT and outliers.admits(endpoint, now):
            suspect.append(endpoint)
    if fresh or suspect:
        return Choice(fresh or suspect)
    if tried:
        return Choice(())
    last = [one for one in pool if one.eligibility is not Eligibility.DRAINING and not one.absent]
    return Choice(last, panic=bool(last))
