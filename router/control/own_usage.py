"""`GET /v1/usage`: what the caller's own key used, from the registry's ledger (docs/usage.md)."""

import re
import time
from collections.abc import Callable, Mapping

from common.discovery.registry_client import RegistryClient, RegistryError, UnknownService
from common.http.errors import ApiError
from common.wire.usage import UsageReport

KEPT_S = 5.0
KEPT_MOST = 256
"""Answers; a client that asks all the time asks the registry as seldom."""
_EPOCH_S = re.compile(r"[0-9]{1,11}(\.[0-9]{1,6})?")
_STEPS = ("hour", "day")


class OwnUsage:
    """Asks the registry.

    Args:
        client: Of the registry that is followed; None for none.
        now: Monotonic seconds.
    """

    def __init__(self, client: RegistryClient | None, now: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._now = now
        self._kept: dict[tuple[tuple[str, str], ...], tuple[float, UsageReport]] = {}

    async def report(self, key: str, query: Mapping[str, str]) -> UsageReport:
        """By model, of the key of this name, or of those who showed none.

        Raises:
            ApiError: 400 for what cannot be asked, 404 where nobody keeps a ledger, 503 when the registry does not answer.
        """
        if self._client is None:
            raise ApiError(404, "no registry is followed, and so nobody keeps a ledger")
        asked = {"by": "model", "key": key, **_checked(query)}
        name, now = tuple(asked.items()), self._now()
        kept = self._kept.get(name)
        if kept is not None and now - kept[0] < KEPT_S:
            return kept[1]
        try:
            report = await self._client.usage(asked)
        except UnknownService as error:
            raise ApiError(404, "the registry keeps no ledger") from error
        except RegistryError as error:
            raise ApiError(503, "the registry does not tell; try again", headers={"Retry-After": "5"}) from error
        if len(self._kept) >= KEPT_MOST:
            self._kept.clear()
        self._kept[name] = (now, report)
        return report


def _checked(query: Mapping[str, str]) -> dict[str, str]:
    asked = {name: query[name] for name in ("since", "until", "step") if name in query}
    for name, value in asked.items():
        if name == "step" and value not in _STEPS:
            raise ApiError(400, f"parameter 'step' must be one of {', '.join(_STEPS)}", field=name)
        if name != "step" and _EPOCH_S.fullmatch(value) is None:
            raise ApiError(400, f"parameter {name!r} must be epoch seconds", field=name)
    return asked
