"""Why a replica cannot be reached, in words for whoever reads `/services` and `svcctl doctor`."""

import errno
import socket
import ssl
from typing import NamedTuple

MEMORY_S = 150.0
"""A run of failures without a new one is forgotten: a replica set aside is tried again within a minute."""
TLS_ALERT = b"\x15\x03"
"""How a TLS server answers what is no TLS (RFC 8446, 5.1 and 6)."""
SPEAKS_TLS = "the port speaks TLS, the record says http"
CLOSES = "it closes connections without an answer"
ASKED_AT = 2
"""So many in a row, and the port is asked whether it speaks TLS: one that hangs up once is more often just ending."""


class Run(NamedTuple):
    """Requests in a row that did not reach a replica; `at` is the moment of the last, on the monotonic clock."""

    failures: int
    reason: str
    at: float


def reason_of(error: BaseException, where: str) -> str:
    """The reason of a failed connection.

    Args:
        error: What the attempt to connect raised.
        where: The addresses tried, with the port.
    """
    match error:
        case ssl.SSLCertVerificationError():
            reason = f"its certificate is not believed: {error.verify_message}"
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "HTTP_REQUEST" | "RECORD_LAYER_FAILURE"):
            reason = "the port does not speak TLS, the record says https"
        case ssl.SSLError():
            reason = f"TLS failed: {error}"
        case TimeoutError():
            reason = f"no connection in time at {where}"
        case ConnectionRefusedError():
            reason = f"connection refused at {where}"
        case ConnectionError():
            reason = f"the connection is closed as it begins at {where}"
        case socket.gaierror() | UnicodeError():
            reason = f"the name does not resolve: {where}"
        case OSError(errno=errno.EHOSTUNREACH | errno.ENETUNREACH | errno.EHOSTDOWN):
            reason = f"no way to {where}"
        case _:
            reason = f"{str(error) or type(error).__name__} at {where}"
    return reason
