"""TLS towards services: whom a client of ours believes."""

import ssl
from pathlib import Path

from common.atomic_file import read_bounded
from common.exits import ConfigurationError

CA_LIMIT_BYTES = 4 << 20
SHUTDOWN_S = 2.0
"""How long the other side may take to say goodbye; asyncio's own 30 s would keep dead connections open."""


def read_ca(path: Path | None) -> str | None:
    """The certificates in `path`, in PEM; None for the system's.

    Raises:
        ConfigurationError: It cannot be read, or has no certificate.
    """
    if path is None:
        return None
    try:
        pem = read_bounded(path.resolve(), limit_bytes=CA_LIMIT_BYTES).decode("ascii")
        client_context(pem)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise ConfigurationError(f"CA file {path}: {error}") from error
    return pem


def client_context(ca: str | None, *, verify: bool = True) -> ssl.SSLContext:
    """What a client checks servers with: their certificates and their names, unless `verify` is false.

    Args:
        ca: PEM of the CAs that are believed, and of single servers' certificates, which are believed alone (pinning);
            None for the system's CAs.
        verify: False believes anybody: what is sent may be read by whoever is in between.

    Raises:
        ssl.SSLError: `ca` has no certificate.
    """
    if verify:
        context = ssl.create_default_context(cadata=ca)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    else:  # the system's CAs would take 20 ms to load, in a worker between two requests
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context
