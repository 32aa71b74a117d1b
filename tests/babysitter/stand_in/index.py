"""A devpi-server on loopback: a private index with the stand-in wheels, and with a login when a test wants one."""

import base64
import json
import os
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from tests.babysitter.real import ask, until
from tests.ports import free_port

PASSWORD = "secret-of-the-index"
BIN = Path(sys.executable).parent


class Index:
    """One devpi-server with the index `root/main`.

    `url` is what pip is given.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.base}/root/main/+simple/"
        self.process: subprocess.Popen[bytes] | None = None
        self._token = ""

    def start(self) -> None:
        """Make the server's directory and start it."""
        data = self.directory / "devpi"
        if not data.exists():
            init = [str(BIN / "devpi-init"), "--serverdir", str(data), "--no-root-pypi"]
            subprocess.run([*init, "--root-passwd", PASSWORD], check=True, capture_output=True, timeout=120)
        serve = [str(BIN / "devpi-server"), "--serverdir", str(data), "--host", "127.0.0.1"]
        secret = self.directory / "secret"
        if not secret.exists():
            secret.write_bytes(base64.b64encode(os.urandom(96)))
            secret.chmod(0o600)
        serve += ["--secretfile", str(secret), "--argon2-memory-cost", "1024", "--argon2-time-cost", "1"]
        with (self.directory / "devpi.log").open("ab") as out:
            self.process = subprocess.Popen(
                [*serve, "--port", str(self.port), "--offline-mode", "--threads", "4"], stdout=out, stderr=out
            )
        until("devpi answers", lambda: ask(f"{self.base}/+api"), 60)
        login = self._call("POST", "/+login", {"user": "root", "password": PASSWORD})
        self._token = login["result"]["password"]
        if not (data / "made").exists():
            (data / "made").touch()
            self._call("PUT", "/root/main", {"type": "stage", "bases": [], "volatile": True})

    def stop(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def upload(self, *wheels: Path) -> None:
        """Publish wheels."""
        for wheel in wheels:
            name, version = wheel.name.split("-")[:2]
            fields = {":action": "file_upload", "name": name, "version": version, "filetype": "bdist_wheel"}
            fields |= {"pyversion": "py3", "protocol_version": "1", "metadata_version": "2.1"}
            limit = uuid.uuid4().hex.encode()
            body = b"".join(
                b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
                % (limit, key.encode(), text.encode())
                for key, text in fields.items()
            )
            head = b'--%s\r\nContent-Disposition: form-data; name="content"; filename="%s"\r\n\r\n'
            body += head % (limit, wheel.name.encode()) + wheel.read_bytes() + b"\r\n--%s--\r\n" % limit
            headers = {"Content-Type": f"multipart/form-data; boundary={limit.decode()}", **self._auth()}
            request = urllib.request.Request(f"{self.base}/root/main/", data=body, headers=headers)  # noqa: S310 - our own server
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own server
                assert answer.status == 200

    def _auth(self) -> dict[str, str]:
        if not self._token:
            return {}
        raw = base64.b64encode(f"root:{self._token}".encode()).decode()
        return {"X-Devpi-Auth": raw}

    def _call(self, method: str, path: str, body: Any) -> Any:
        request = urllib.request.Request(  # noqa: S310 - our own server
            self.base + path,
            data=json.dumps(body).encode(),
            method=method,
            headers={"Content-Type": "application/json", "Accept": "application/json", **self._auth()},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own server
            return json.load(answer)
