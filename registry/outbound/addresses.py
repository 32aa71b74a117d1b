"""Which addresses may be registered: what is registered will be connected to (docs/faults.md G4, C16). PURE."""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from common.names import is_localhost
from common.wire.address import bare

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
LOOPBACK = ("127.0.0.0/8", "::1/128")
NEVER = tuple(
    ipaddress.ip_network(text)
    for text in ("0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/128", "fe80::/10", "ff00::/8", "fd00:ec2::254/128")
)
"""Unspecified, link-local (clouds answer there with credentials), multicast and reserved."""
METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"})
_ODD_NUMBER = re.compile(r"(0[xX][0-9A-Fa-f]*|[0-9]+)")
ANY_HOST = "*"
WEB_PORTS = frozenset({80, 443})
"""Low ports where inference servers do live, behind a proxy."""


class AddressRefused(ValueError):
    """The text says which address, and why."""


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """What may be registered.

    Args:
        networks: IP addresses must lie in one of these.
        hosts: Names that may be registered; `*` is every name, whose addresses are then checked when it is resolved.
        lowest_port: Ports below are refused, but for those of the web.
        own: Host and port of the registry itself.
    """

    networks: Sequence[Network]
    hosts: frozenset[str] = frozenset({ANY_HOST})
    lowest_port: int = 1024
    own: tuple[str, int] | None = None

    def check(self, host: str, port: int) -> None:
        """Judge one address.

        Raises:
            AddressRefused: It may not be registered.
        """
        self.check_port(port)
        name = bare(host)
        address = parse_address(name)
        if address is None:
            self._check_name(name.lower().rstrip("."))
        else:
            self.check_address(address)
        if (
            self.own is not None
            and port == self.own[1]
            and (name == self.own[0] or is_localhost(name) or _loops(address))
        ):
            raise AddressRefused(f"{host}:{port} is the registry itself")

    def check_port(self, port: int) -> None:
        """Judge a port alone.

        Raises:
            AddressRefused: It is too low.
        """
        if port < self.lowest_port and port not in WEB_PORTS:
            raise AddressRefused(f"port {port} is below {self.lowest_port}")

    def check_url(self, url: str) -> None:
        """Judge the host and port of a URL.

        Raises:
            AddressRefused: It may not be registered.
        """
        parts = urlsplit(url)
        self.check(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))

    def check_address(self, address: Address) -> None:
        """Judge an IP address, of a record or of a name that was resolved.

        Raises:
            AddressRefused: It is in no allowed network, or in one that never is.
        """
        mapped = getattr(address, "ipv4_mapped", None)
        real: Address = mapped or address
        if any(real in network for network in NEVER if network.version == real.version):
            raise AddressRefused(f"address {address} is never allowed")
        if not any(real in network for network in self.networks if network.version == real.version):
            raise AddressRefused(f"address {address} is in none of the allowed networks")

    def _check_name(self, name: str) -> None:
        if name in METADATA_NAMES:
            raise AddressRefused(f"host {name!r} is never allowed")
        if _ODD_NUMBER.fullmatch(name.rpartition(".")[2]):
            raise AddressRefused(f"host {name!r} is a number in a form that hides its address")
        if ANY_HOST not in self.hosts and name not in self.hosts:
            raise AddressRefused(f"host {name!r} is not among the allowed hosts")


def parse_address(text: str) -> Address | None:
    """An IP literal, or None for a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Read CIDRs.

    Raises:
        ValueError: One is none; the text names it.
    """
    return tuple(ipaddress.ip_network(text) for text in texts)


def _loops(address: Address | None) -> bool:
    return address is not None and address.is_loopback
