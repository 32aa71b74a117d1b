"""PURE: which pair of ports a new replica may get: its server's, and the next one for its babysitter (E8)."""

from collections.abc import Container, Iterator


def candidates(first: int, last: int, *, taken: Container[int], avoid: range, after: int | None) -> Iterator[int]:
    """First ports of the pairs between `first` and `last` that nobody has, beginning behind `after`.

    Going on behind the pair given last keeps a port that was just let go from being given to another at once, whose
    clients would meet a stranger. `avoid` is the kernel's range for outgoing connections, which takes any of its ports
    at any moment.
    """
    pairs = [
        port
        for port in range(first, last, 2)
        if port not in avoid and port + 1 not in avoid and port not in taken and port + 1 not in taken
    ]
    behind = [port for port in pairs if after is None or port > after]
    yield from behind
    yield from (port for port in pairs if after is not None and port <= after)


def ephemeral(text: str) -> range:
    """The kernel's range as /proc/sys/net/ipv4/ip_local_port_range tells it; empty when it cannot be read."""
    words = text.split()
    if len(words) == 2 and all(word.isdigit() for word in words):  # noqa: PLR2004 - first and last
        return range(int(words[0]), int(words[1]) + 1)
    return range(0)
