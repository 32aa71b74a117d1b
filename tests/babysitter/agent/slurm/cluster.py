"""A real Slurm of several nodes on this machine: munged, slurmctld and slurmd as our own processes, ended by their pids."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.babysitter.real import until
from tests.ports import free_port

SPARE = "198.51.100.1/32"
"""Of a block that is nobody's (RFC 5737)."""
PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server"}
ACCOUNT, NOT_OURS = "inference", "theirs"
"""With accounting: the account that our user belongs to, and one that it does not."""


def install(packages: Mapping[str, str]) -> None:
    """Debian's Slurm, by program and package; whatever the packages would start is started by the tests alone."""
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if missing:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)


@dataclass
class Cluster:
    """What runs, by name."""

    work: Path
    nodes: int
    accounting: bool = False
    port: int = field(default_factory=free_port)
    accounts_port: int = field(default_factory=free_port)
    database_port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """For Slurm's commands, and whoever calls them."""
        return {"SLURM_CONF": str(self.work / "slurm.conf")}

    def configure(self) -> None:
        """Write its files."""
        host, work = socket.gethostname().partition(".")[0], self.work
        lines = [
            "ClusterName=test", f"SlurmctldHost={host}(127.0.0.1)", "SlurmUser=root", "SlurmdUser=root",
            "AuthType=auth/munge", f"AuthInfo=socket={work}/munge.socket", f"StateSaveLocation={work}/state",
            f"SlurmdSpoolDir={work}/spool.%n", f"SlurmctldPidFile={work}/slurmctld.pid",
            f"SlurmdPidFile={work}/slurmd.%n.pid", f"SlurmctldPort={self.port}", "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none", "JobAcctGatherType=jobacct_gather/none",
            *self._accounts(), "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core", "ReturnToService=2", "SlurmdTimeout=15", "GresTypes=gpu", "MpiDefault=none",
            "KillWait=5", "SchedulerParameters=bf_interval=2,sched_interval=5",
        ]  # fmt: skip
        gres = []
        for number in range(1, self.nodes + 1):
            (work / f"spool.n{number}").mkdir()
            for device in range(2):
                (work / f"gpu{number}-{device}").touch()
            lines.append(
                f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=2 RealMemory=2000"
                " Gres=gpu:2 State=UNKNOWN"
            )
            gres.append(f"NodeName=n{number} Name=gpu File={work}/gpu{number}-[0-1]")
        lines.append(f"PartitionName=main Nodes=n[1-{self.nodes}] Default=YES MaxTime=INFINITE State=UP")
        (work / "state").mkdir()
        (work / "slurm.conf").write_text("\n".join(lines) + "\n")
        (work / "gres.conf").write_text("\n".join(gres) + "\n")
        (work / "munge.key").write_bytes(secrets.token_bytes(128))
        (work / "munge.key").chmod(0o400)

    def _accounts(self) -> list[str]:
        """What the configuration says of accounting; with it, jobs need an account that their user belongs to."""
        if not self.accounting:
            return ["AccountingStorageType=accounting_storage/none"]
        password = secrets.token_hex(16)
        lines = [
            "AuthType=auth/munge", f"AuthInfo=socket={self.work}/munge.socket", "DbdHost=localhost",
            f"DbdPort={self.accounts_port}", "SlurmUser=root", "StorageType=accounting_storage/mysql",
            "StorageHost=127.0.0.1", f"StoragePort={self.database_port}", "StorageUser=slurm", f"StoragePass={password}",
            "StorageLoc=accounts", f"PidFile={self.work}/slurmdbd.pid",
        ]  # fmt: skip
        file = self.work / "slurmdbd.conf"
        file.touch(0o600)
        file.write_text("\n".join(lines) + "\n")
        users = [f"slurm@'{host}'" for host in ("localhost", "127.0.0.1")]
        made = [f"CREATE USER {user} IDENTIFIED BY '{password}';" for user in users]
        (self.work / "users.sql").touch(0o600)
        granted = [f"GRANT ALL ON accounts.* TO {user};" for user in users]
        (self.work / "users.sql").write_text("\n".join((*made, *granted)) + "\n")
        return [
            "AccountingStorageType=accounting_storage/slurmdbd", "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={self.accounts_port}", f"AccountingStoragePass={self.work}/munge.socket",
            "AccountingStorageEnforce=associations",
        ]  # fmt: skip

    def start_accounting(self) -> None:
        """MariaDB and slurmdbd, with an account of ours and one that is not."""
        data = f"--datadir={self.work}/database"
        made = ["mariadb-install-db", "--no-defaults", data, "--auth-root-authentication-method=normal", "--user=root"]
        subprocess.run([*made, "--skip-test-db"], check=True, capture_output=True)
        self.start("mariadbd")
        until("MariaDB listens", lambda: _listens(self.database_port))
        self.start("slurmdbd")
        until("slurmdbd listens", lambda: _listens(self.accounts_port))
        for words in (
            ("cluster", "test"), ("account", ACCOUNT), ("account", NOT_OURS), ("user", "root", f"account={ACCOUNT}"),
        ):  # fmt: skip
            self.run("sacctmgr", "--immediate", "add", *words)

    def start(self, name: str) -> None:
        """Start `munged`, `slurmctld`, `mariadbd`, `slurmdbd`, or a node's daemon by the node's name."""
        conf = f"{self.work}/slurm.conf"
        commands = {
            "munged": [
                "munged", "--foreground", "--force", f"--key-file={self.work}/munge.key",
                f"--socket={self.work}/munge.socket", f"--pid-file={self.work}/munged.pid",
                f"--log-file={self.work}/munged.log", f"--seed-file={self.work}/munged.seed",
            ],
            "slurmctld": ["slurmctld", "-D", "-f", conf],
            "slurmdbd": ["slurmdbd", "-D"],
            "mariadbd": [
                "mariadbd", "--no-defaults", f"--datadir={self.work}/database", f"--socket={self.work}/database.socket",
                f"--port={self.database_port}", "--bind-address=127.0.0.1", "--user=root",
                f"--init-file={self.work}/users.sql", "--innodb-buffer-pool-size=16M",
            ],
        }  # fmt: skip
        with (self.work / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                commands.get(name, ["slurmd", "-D", "-N", name, "-f", conf]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env},
            )

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End one of them."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def run(self, *argv: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **self.env}
        )
        return done.stdout

    def jobs(self, *states: str) -> list[tuple[int, str, str]]:
        """Id, name and state of those that have not ended, or that are in these states."""
        which = [f"--states={','.join(states)}"] if states else []
        lines = self.run("squeue", "--noheader", *which, "--format=%i|%j|%T").splitlines()
        return [(int(number), name, state) for number, name, state in (line.split("|") for line in lines)]

    def is_up(self) -> bool:
        """Every node is idle or at work."""
        told = self.run("sinfo", "--noheader", "--Node", "--format=%N %t").split()
        return len(told) == 2 * self.nodes and all(word in ("idle", "mix", "alloc") for word in told[1::2])


@contextmanager
def resolvable() -> Iterator[None]:
    """Slurm looks names up as for the network: where loopback's is the only address, it gets one more, such as in a namespace."""
    told = json.loads(subprocess.run(["ip", "-json", "-4", "addr"], capture_output=True, check=True).stdout)
    if any(not one["local"].startswith("127.") for link in told for one in link.get("addr_info", ())):
        yield
        return
    subprocess.run(["ip", "addr", "add", SPARE, "dev", "lo"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "addr", "del", SPARE, "dev", "lo"], check=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def cluster(nodes: int = 4, *, accounting: bool = False) -> Iterator[Cluster]:
    """One that is up; ended with its jobs, whatever happens."""
    install(PACKAGES | (ACCOUNTING if accounting else {}))
    work = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path may have 107 characters
    made = Cluster(work, nodes, accounting)
    made.configure()
    with resolvable():
        yield from _running(made)


def _running(made: Cluster) -> Iterator[Cluster]:
    work = made.work
    try:
        made.start("munged")
        until("munged listens", (work / "munge.socket").exists)
        if made.accounting:
            made.start_accounting()
        made.start("slurmctld")
        for number in range(1, made.nodes + 1):
            made.start(f"n{number}")
        until("the nodes are idle", made.is_up)
        yield made
        made.run("scancel", "--user=root")
        until("no job is left", lambda: not made.jobs(), 60)
    finally:
        for name in reversed(list(made.processes)):
            made.end(name)
        shutil.rmtree(work, ignore_errors=True)
