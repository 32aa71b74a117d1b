"""PURE. Long prompts to replicas with a static cache, short ones to paged caches (docs/contract.md 2)."""

from collections.abc import Sequence
from typing import Final

from router.model import Endpoint

DEFAULT_THRESHOLD_BYTES: Final = 51200


def prefer(candidates: Sequence[Endpoint], text_bytes: int | None, threshold_bytes: int) -> Sequence[Endpoint]:
    """The candidates whose cache suits a text of `text_bytes`; all of them when none matches or none says."""
    if text_bytes is None:
        return candidates
    suited = "static" if text_bytes > threshold_bytes else "paged"
    return [endpoint for endpoint in candidates if endpoint.cache_type == suited] or candidates
