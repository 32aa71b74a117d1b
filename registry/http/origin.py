"""Which web pages may talk to the registry through somebody's browser. PURE.

A browser lets any page of the web send requests to an address that only its user can reach. So a write that carries an
`Origin` must come from our own page; and a registry that is open because it listens on loopback answers the page's calls
only under a name that no foreign name server can point here: an address or `localhost`.
"""

from urllib.parse import urlsplit

from registry.outbound.addresses import parse_address


class ForeignPage(Exception):
    """The text says what is wrong, and the remedy."""


def check_origin(origin: str, host: str) -> None:
    """Judge a write that a browser sent for a page.

    Args:
        origin: The `Origin` header.
        host: The `Host` header.

    Raises:
        ForeignPage: The page is not ours.
    """
    try:
        ours = urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:
        ours = False
    if not ours:
        raise ForeignPage("pages of other origins may not change anything here; behind a proxy, let it pass Host on")


def check_local_name(host: str) -> None:
    """Judge the name under which an open registry on loopback was asked for its page.

    Raises:
        ForeignPage: It is neither an address nor `localhost`.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if name != "localhost" and not name.endswith(".localhost") and parse_address(name) is None:
        raise ForeignPage(f"open this page as localhost or by address, not as {name[:64]!r}; or set token files")
