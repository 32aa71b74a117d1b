"""Who is served at a port and who merely keeps a connection, told by the kernel."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from babysitter import connections, ports
from babysitter.connections import Connection


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """Both ends of a connection, the server's first, and the server's port."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listening.getsockname()[1]
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        yield stack.enter_context(listening.accept()[0]), client, port


def seen(port: int) -> Connection:
    [one] = connections.established(port)
    return one


def test_a_connection_is_idle_from_its_answer_until_the_next_request_W55(
    pair: tuple[socket.socket, socket.socket, int],
) -> None:
    server, client, port = pair
    client.sendall(b"request")
    assert not seen(port).is_idle(at_rest=True)
    assert server.recv(100)
    time.sleep(0.2)
    assert not seen(port).is_idle(at_rest=True)  # however long the answer takes
    server.sendall(b"answer")
    deadline = time.monotonic() + 10
    while not seen(port).is_idle(at_rest=True):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert client.recv(100)
    time.sleep(0.1)
    client.sendall(b"another")
    assert not seen(port).is_idle(at_rest=True)


@pytest.mark.parametrize(
    ("unread", "unsent", "asked", "sent_s", "received_s", "acknowledged_s", "idle", "idle_at_rest"),
    [
        (0, 0, 9, 6.0, 6.1, 6.0, True, True),
        (0, 0, 9, 4.0, 9.0, 4.0, False, True),  # a stream between two tokens, unless the engine has none
        (0, 0, 9, 0.4, 9.0, 0.4, False, False),  # its end may still come
        (0, 0, 9, 60.0, 30.0, 30.0, False, False),  # asked, and not answered yet
        (0, 0, 9, 60.0, 60.0, 60.0, False, True),  # perhaps asked last
        (0, 0, 9, 60.0, 60.0, 59.96, True, True),  # the answer was the last: it was acknowledged after that
        (1, 0, 9, 60.0, 61.0, 60.0, False, False),
        (0, 1, 9, 60.0, 61.0, 60.0, False, False),
        (0, 0, 0, 60.0, 60.0, 60.0, True, True),  # never used
    ],
)
def test_what_counts_as_idle_W55(
    unread: int,
    unsent: int,
    asked: int,
    sent_s: float,
    *,
    received_s: float,
    acknowledged_s: float,
    idle: bool,
    idle_at_rest: bool,
) -> None:
    seen = Connection(1, unread, unsent, asked, sent_s, received_s, acknowledged_s)
    assert (seen.is_idle(), seen.is_idle(at_rest=True)) == (idle, idle_at_rest)


def test_kernel_that_tells_a_connection_without_its_times_is_one_that_does_not_tell_W55() -> None:
    with pytest.raises(OSError, match="tcp_info"):
        connections._read(bytes(connections._MESSAGE.size))


def test_without_the_kernels_word_every_connection_of_others_counts(
    pair: tuple[socket.socket, socket.socket, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_port: int) -> list[Connection]:
        raise OSError

    monkeypatch.setattr(connections, "established", refuse)
    assert ports.clients(pair[2]) == 0  # both ends are ours
