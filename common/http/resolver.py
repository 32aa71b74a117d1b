"""How aiohttp finds a host: by the rule of `common/hosts.py`."""

import socket

from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver

from common.names import LOOPBACK, is_localhost


class Resolver(ThreadedResolver):
    """aiohttp itself then tries all addresses, each with a head start."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of `host`.

        Raises:
            OSError: There is none.
        """
        if is_localhost(host):
            both = zip(LOOPBACK, (socket.AF_INET, socket.AF_INET6), strict=True)
            return [
                ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
                for address, kind in both
                if family in (socket.AF_UNSPEC, kind)
            ]
        infos = await super().resolve(host, port, family)
        return sorted(infos, key=lambda one: one["family"] != socket.AF_INET)
