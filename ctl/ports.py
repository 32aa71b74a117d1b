"""Who has a port of this machine."""

import psutil


def holder(port: int) -> str | None:
    """Who listens on `port` of this machine; None when nobody does."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            if connection.pid is None:
                return "another user's process"
            try:
                command = " ".join(psutil.Process(connection.pid).cmdline())
            except psutil.Error:
                command = "?"
            return f"pid {connection.pid} ({command[:60]})"
    return None


def listens(process: psutil.Process, port: int) -> bool:
    """The process, or a child of it, listens on `port`: a stranger's answer there proves nothing about ours."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        family = [process]
    return any(_listens(member, port) for member in family)


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        connections = process.net_connections("tcp")
    except psutil.Error:
        return False
    return any(it.status == psutil.CONN_LISTEN and it.laddr and it.laddr.port == port for it in connections)
