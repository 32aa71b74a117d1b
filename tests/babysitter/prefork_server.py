"""A server as many are: it writes over its environment, as a process title does, and forks workers: `prefork_server.py PORT`.

One worker serves; another is in a session of its own and ignores SIGTERM. Their pids are written to standard output.
"""

import ctypes
import os
import signal
import socket
import sys
import time
from pathlib import Path

_START, _END = 47, 48
"""`env_start` and `env_end` in /proc/PID/stat, counted after the command's closing parenthesis (proc(5))."""
MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'


def wipe() -> None:
    """Write zeros over the environment that the kernel shows to others."""
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(fields[_START]), int(fields[_END])
    ctypes.memset(start, 0, end - start)


def serve(listener: socket.socket) -> None:
    """Answer everything with the list of models."""
    while True:
        client, _ = listener.accept()
        with client:
            client.recv(65536)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(MODELS)}\r\nConnection: close\r\n\r\n"
            client.sendall(head.encode() + MODELS)


def main() -> None:
    """Fork the workers, and wait."""
    wipe()
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    if os.fork() == 0:
        serve(listener)
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    while True:
        time.sleep(600)


if __name__ == "__main__":
    main()
