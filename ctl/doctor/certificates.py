"""What `doctor` says of a certificate that a service shows: how long it still holds."""

import asyncio
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from ctl.doctor.finding import Finding, fault, ok, warn

ASK_S = 3.0
WARN_DAYS, FAULT_DAYS = 30, 7
DAY_S = 86_400


async def certificate(name: str, url: str, context: ssl.SSLContext | None, now: float) -> list[Finding]:
    """The certificate at `url`; nothing where there is none, or nobody who shows it: others say so."""
    parts = urlsplit(url)
    if parts.scheme != "https":
        return []
    try:
        async with asyncio.timeout(ASK_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 443, ssl=context or True)
    except (OSError, TimeoutError):
        return []
    shown = writer.get_extra_info("peercert") or {}
    writer.transport.abort()
    return list(judged(name, ssl.cert_time_to_seconds(str(shown["notAfter"])), now))


def judged(name: str, ends: float, now: float) -> Iterator[Finding]:
    """What it means that a certificate ends at `ends`; both are epoch seconds."""
    days = int((ends - now) // DAY_S)
    seen = f"{name}'s holds for {days} more days"
    remedy = "make a new one ('svcctl tls init --renew NODE') in place of the old: services take it by themselves"
    if days < FAULT_DAYS:
        yield fault("certificates", seen, remedy)
    elif days < WARN_DAYS:
        yield warn("certificates", seen, remedy)
    else:
        yield ok("certificates", seen)
