"""PURE. Hosts, ports and URLs as text. A host may come with the brackets that an IPv6 address has in a URL, or without."""


def bare(host: str) -> str:
    """The host without brackets: what a resolver and a socket take."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def authority(host: str, port: int) -> str:
    """`host:port`, with an IPv6 address in brackets."""
    host = bare(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url(host: str, port: int, *, scheme: str = "http") -> str:
    """`scheme://host:port`, with an IPv6 address in brackets, without a slash at the end."""
    return f"{scheme}://{authority(host, port)}"
