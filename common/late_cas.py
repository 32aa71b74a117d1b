"""The system's CAs, read when first somebody is checked by them.

aiohttp makes two contexts with all of them as it is imported, one of which checks nobody: 25 to 45 ms of CPU for each and 2 MB in
each process, most of which never ask by TLS, or believe a CA of their own.
"""

import ssl
import sys
from typing import Any

_make = ssl.create_default_context
_set_default_verify_paths = ssl.SSLContext.set_default_verify_paths


class LateContext(ssl.SSLContext):
    """As `ssl.create_default_context()` makes it; the CAs are read for the first connection."""

    _are_read = False

    def wrap_bio(self, *args: Any, **named: Any) -> ssl.SSLObject:
        """For a connection of an event loop."""
        self._read()
        return super().wrap_bio(*args, **named)

    def wrap_socket(self, *args: Any, **named: Any) -> ssl.SSLSocket:
        """For a socket that blocks."""
        self._read()
        return super().wrap_socket(*args, **named)

    def _read(self) -> None:
        if not self._are_read:
            self._are_read = True
            self.load_default_certs()


def create_default_context(*args: Any, **named: Any) -> ssl.SSLContext:
    """In place of ssl's, which makes those that differ from the usual one."""
    if args or any(value is not None for value in named.values()):
        return _make(*args, **named)
    context = LateContext(ssl.PROTOCOL_TLS_CLIENT)
    if sys.version_info >= (3, 13):  # as ssl has it
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    return context


def _read_if_checked(context: ssl.SSLContext) -> None:
    """In place of `set_default_verify_paths`: a context that checks nobody needs no CAs (and without them refuses, were it to check)."""
    if context.verify_mode is not ssl.CERT_NONE:
        _set_default_verify_paths(context)


def install() -> None:
    """From now on in this process; call before aiohttp is imported."""
    ssl.create_default_context = create_default_context
    ssl.SSLContext.set_default_verify_paths = _read_if_checked  # type: ignore[method-assign, assignment]
