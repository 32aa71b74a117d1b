"""PURE: the port that a server chose, when not the one it was told: from its api_server.json, or its ready line."""

import json
import re

LAST_PORT = 65_535
READY_LINE = re.compile(r"start service at \S*:(\d{1,5})\b")


def port_in_file(raw: bytes) -> int | None:
    """The port in `{"port": N}`; None for anything else (the file may be half written)."""
    try:
        content = json.loads(raw.decode())
    except (UnicodeDecodeError, ValueError, RecursionError):
        return None
    port = content.get("port") if isinstance(content, dict) else None
    return port if isinstance(port, int) and not isinstance(port, bool) and 0 < port <= LAST_PORT else None


def port_in_log(text: str) -> int | None:
    """The port of the last ready line (`start service at HOST:PORT`) in a log."""
    ports = [int(port) for port in READY_LINE.findall(text)]
    good = [port for port in ports if 0 < port <= LAST_PORT]
    return good[-1] if good else None
