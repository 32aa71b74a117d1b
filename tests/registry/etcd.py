"""A real etcd for tests: started, stopped, paused, killed and wiped."""

import json
import shutil
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
import trustme


def require_etcd() -> None:
    """Skip a test where there is no etcd (`.ci/run` installs it)."""
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        pytest.skip("etcd is not installed: apt-get install etcd-server etcd-client")


@dataclass(frozen=True)
class Certificates:
    """A CA of the test's own, the member's certificate, and a client's."""

    ca: Path
    server: Path
    client: Path
    client_key: Path

    @classmethod
    def make(cls, directory: Path) -> Self:
        """Write them to `directory`."""
        directory.mkdir()
        authority = trustme.CA()
        made = cls(*(directory / name for name in ("ca.pem", "server.pem", "client.pem", "client.key")))
        authority.cert_pem.write_to_path(made.ca)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(made.server)
        client = authority.issue_cert("registry.example")
        client.cert_chain_pems[0].write_to_path(made.client)
        client.private_key_pem.write_to_path(made.client_key)
        return made

    def server_flags(self) -> list[str]:
        """For etcd. Its JSON gateway is a client of the member, and shows the member's own certificate."""
        return [
            *("--cert-file", str(self.server), "--key-file", str(self.server)),
            *("--client-cert-auth", "--trusted-ca-file", str(self.ca)),
        ]

    def client_flags(self) -> list[str]:
        """For etcdctl."""
        return ["--cacert", str(self.ca), "--cert", str(self.client), "--key", str(self.client_key)]

    def context(self) -> ssl.SSLContext:
        """For Python."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.client, self.client_key)
        return context


class Etcd:
    """One member on loopback.

    Args:
        directory: Its data.
        client_port: Where clients ask.
        peer_port: Where other members do.
        name: Its name in the cluster.
        cluster: Name and peer URL of every member; empty for a cluster of one.
        tls: Files that it serves TLS with, to clients with a certificate of the same CA only.
    """

    def __init__(
        self,
        directory: Path,
        *,
        client_port: int,
        peer_port: int,
        name: str = "one",
        cluster: str = "",
        tls: "Certificates | None" = None,
    ) -> None:
        self._tls = tls
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{client_port}"
        self.directory = directory
        self.endpoint = f"127.0.0.1:{client_port}"
        self._name = name
        self._peer = f"http://127.0.0.1:{peer_port}"
        self._cluster = cluster or f"{name}={self._peer}"
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def cluster(cls, directory: Path, ports: list[tuple[int, int]]) -> list[Self]:
        """Members of one cluster, not yet started; `ports` are client and peer port of each."""
        peers = ",".join(f"m{number}=http://127.0.0.1:{peer}" for number, (_, peer) in enumerate(ports))
        return [
            cls(directory / f"m{number}", client_port=client, peer_port=peer, name=f"m{number}", cluster=peers)
            for number, (client, peer) in enumerate(ports)
        ]

    def start(self, *flags: str, wait: bool = True) -> None:
        """Start over whatever data there is; `wait` returns when it answers."""
        url = self.url
        self._process = subprocess.Popen(
            [
                "etcd",
                *("--name", self._name, "--data-dir", str(self.directory), "--log-level", "error"),
                *("--listen-client-urls", url, "--advertise-client-urls", url),
                *("--listen-peer-urls", self._peer, "--initial-advertise-peer-urls", self._peer),
                *("--initial-cluster", self._cluster, "--auto-compaction-retention=1h"),
                *("--heartbeat-interval", "50", "--election-timeout", "500"),
                *(self._tls.server_flags() if self._tls else ()),
                *flags,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if wait:
            self.await_health()

    def await_health(self) -> None:
        """Return when it answers."""
        deadline = time.monotonic() + 20
        while not self._is_healthy():
            if time.monotonic() > deadline or self._process is None or self._process.poll() is not None:
                self.kill()
                raise AssertionError("etcd does not start")
            time.sleep(0.02)

    def leads(self) -> bool:
        """True for the leader of its cluster."""
        (status,) = json.loads(self.ctl("endpoint", "status", "-w", "json"))
        return bool(status["Status"]["leader"] == status["Status"]["header"]["member_id"])

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wipe(self) -> None:
        """Delete its data; it must not run."""
        shutil.rmtree(self.directory)

    def ctl(self, *arguments: str) -> str:
        """Run etcdctl; returns what it prints."""
        done = subprocess.run(
            ["etcdctl", f"--endpoints={self.url}", *(self._tls.client_flags() if self._tls else ()), *arguments],
            env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            check=True,
            timeout=20,
        )
        return done.stdout.decode()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _is_healthy(self) -> bool:
        try:
            context = self._tls.context() if self._tls else None
            with urllib.request.urlopen(f"{self.url}/health", timeout=1, context=context) as answer:  # noqa: S310 - https or http
                return b"true" in answer.read()
        except (urllib.error.URLError, OSError):
            return False
