"""The resolver and the client sessions for everything that the registry asks: no name leads where nothing may be registered."""

import socket
import ssl

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult

from common import __version__
from common.http.client import KEEPALIVE_S
from common.http.resolver import Resolver
from registry.outbound.addresses import AddressPolicy, AddressRefused, parse_address

log = structlog.get_logger(__name__)


class GuardedResolver(Resolver):
    """Resolves names, and gives no address that may not be registered: a name can change after its registration."""

    def __init__(self, policy: AddressPolicy) -> None:
        super().__init__()
        self.policy = policy

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The allowed addresses of `host`.

        Raises:
            OSError: There is none.
        """
        allowed = []
        try:
            everything = await super().resolve(host, port, family)
        except UnicodeError as error:  # an empty label, or one of more than 63 letters
            raise OSError(f"{host} is no name") from error
        for resolved in everything:
            address = parse_address(resolved["host"].partition("%")[0])
            try:
                if address is not None:
                    self.policy.check_address(address)
                    allowed.append(resolved)
            except AddressRefused as error:
                log.warning("probe.address_refused", host=host, reason=str(error))
        if not allowed:
            raise OSError(f"{host} has no address that may be asked")
        return allowed


def probe_session(resolver: AbstractResolver, tls: ssl.SSLContext | None = None) -> aiohttp.ClientSession:
    """The session for probes: no connection, cookie or proxy is shared between two servers."""
    connector = aiohttp.TCPConnector(
        limit=0, force_close=True, resolver=resolver, use_dns_cache=False, ssl=True if tls is None else tls
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        headers={"User-Agent": f"inference-svc/{__version__}"},
    )


def agent_session(resolver: AbstractResolver, tls: ssl.SSLContext | None = None) -> aiohttp.ClientSession:
    """The session for calls of node agents, whose names are judged like those of everything registered."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=KEEPALIVE_S,
            resolver=resolver,
            use_dns_cache=False,
            ssl=True if tls is None else tls,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )
