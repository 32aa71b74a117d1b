"""A babysitter of a tenth of the weight: takes the lock, both ports and the calls of the real one, and runs no server.

Standard library only, started with `python -I -S`. What it does is in the request's `full_config.light`: `exit` (a code
to end with at once), `status` (the one it reaches, `ready`), `deaf` (it does not stop when told to), `after` (a file: it is
ready once that is there).
"""

import fcntl
import json
import os
import socket
import sys
import time
import zlib
from pathlib import Path

ARGUMENTS = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
HOME = Path(ARGUMENTS["--replica-dir"])
PORT = int(ARGUMENTS["--port"])
STATE = HOME.parent / "state" / f"{HOME.name}.json"
REQUEST = json.loads((HOME / "request.json").read_text())
HOW = REQUEST.get("full_config", {}).get("light", {})
TIMELINE: list[dict[str, object]] = []


def write(status: str, **more: object) -> None:
    """Write the state file as the real one does."""
    before = json.loads(STATE.read_text()) if STATE.exists() else {}
    TIMELINE.append({"at": "now", "from": before.get("status"), "to": status, "cause": "light", "lasted_s": 0})
    body = {
        **before,
        "replica_id": HOME.name,
        "status": status,
        "display_status": "Active" if status == "ready" else "Pending",
        "replica_pid": os.getpid(),
        "memory": {"attempts": 1, "timeline": TIMELINE},
        "seq": before.get("seq", 0) + 1,
        **more,
        "schema": 1,
    }
    body.pop("crc32", None)
    crc = zlib.crc32(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
    beside = STATE.with_name(f".{STATE.name}.tmp-{os.getpid()}")
    beside.write_text(json.dumps({**body, "crc32": crc}, indent=1))
    beside.replace(STATE)


def serve(calls: socket.socket) -> None:
    """Answer `/stop`, `/retry` and `/health`, one call at a time, until told to stop."""
    while True:
        connection = calls.accept()[0]
        with connection:
            raw = b""
            while b"\r\n\r\n" not in raw:
                chunk = connection.recv(65_536)
                if not chunk:
                    break
                raw += chunk
            head, _, body = raw.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
            while len(body) < length:
                body += connection.recv(65_536)
            ends = head.startswith(b"POST /stop") and (json.loads(body or b"{}").get("force") or not HOW.get("deaf"))
            if head.startswith(b"POST /stop") and not ends:
                write("stopping")
            if head.startswith(b"POST /retry"):
                write("ready", endpoint=f"http://node:{PORT}")
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            if ends:
                return


def main() -> None:
    """Run until told to stop."""
    if "exit" in HOW:
        sys.stderr.write("svc-babysitter: error: told to end\n")
        sys.exit(HOW["exit"])
    lock = os.open(HOME / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.stderr.write("svc-babysitter: error: another babysitter\n")
        sys.exit(78)
    server = socket.create_server(("127.0.0.1", PORT))
    calls = socket.create_server(("127.0.0.1", PORT + 1))
    (STATE.parent / f"{HOME.name}.pid").write_text(f"{os.getpid()}\n")
    sys.stderr.write("the light one runs\n")
    sys.stderr.flush()
    (HOME / "replica_stdout.log").write_text("one\ntwo\nthree\n")
    while "after" in HOW and not Path(HOW["after"]).exists():
        time.sleep(0.01)
    status = HOW.get("status", "ready")
    shown = f"http://node:{PORT}" if status == "ready" else "NA"
    write(status, endpoint=shown, base_url=f"http://127.0.0.1:{PORT + 1}", error_message=HOW.get("error"))
    serve(calls)
    write("stopped", endpoint="NA")
    server.close()


if __name__ == "__main__":
    main()
