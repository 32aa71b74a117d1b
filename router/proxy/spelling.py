"""PURE. Paths as people type them (a slash too many, a prefix of another product), and the path that was probably meant.

Only a path that becomes a served one is changed. Any other stays as it came, and is refused as it came.
"""

import difflib
import re
from collections.abc import Collection, Sequence
from typing import Final

from router.proxy.paths import CONTROL, MODEL_TREES, PROXIED, stored_response

_SLASHES = re.compile(rb"/{2,}")
_LOOKED_AT_BYTES: Final = 128
_CLOSE, _A_LETTER = 0.6, 0.9
"""`difflib` ratios: from the first on a path may have been meant; from the second on it differs in a letter or two only, and
wins over a served path that the typed one ends with (`/chat/completion` is not `/completion`)."""
_SERVED = sorted(path.decode() for path in PROXIED.keys() | (CONTROL - {b"/"}))


def known_path(path: bytes, prefixes: Sequence[bytes] = (), extra: Collection[bytes] = ()) -> bytes:
    """The path that `path` stands for, or `path` itself.

    Args:
        path: As it came, without its query.
        prefixes: What may stand in front, such as `/openai`.
        extra: Further paths that are proxied.
    """
    if path in PROXIED or path in CONTROL or path in extra:
        return path
    plain = _SLASHES.sub(b"/", path).removesuffix(b"/")
    for candidate in (plain, *(plain.removeprefix(prefix) for prefix in prefixes if plain.startswith(prefix + b"/"))):
        if candidate in PROXIED or candidate in CONTROL or candidate in extra or candidate.startswith(MODEL_TREES):
            return candidate
        if stored_response(candidate) is not None:
            return candidate
    return path


def nearest(path: bytes) -> str | None:
    """The known path that somebody who typed `path` most likely meant."""
    text = path[:_LOOKED_AT_BYTES].decode("latin-1")
    close = next(iter(difflib.get_close_matches(text, _SERVED, n=1, cutoff=_CLOSE)), None)
    if close is not None and difflib.SequenceMatcher(None, text, close).ratio() >= _A_LETTER:
        return close
    return max((served for served in _SERVED if text.rstrip("/").endswith(served)), key=len, default=close)
