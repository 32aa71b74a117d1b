"""A node as Docker's default network makes it: /etc/hosts names `::1 localhost`, and there is no ::1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n172.17.0.2\t0a1b2c3d4e5f\n"
SCRIPT = """
set -e
mount --bind "$HOSTS_FILE" /etc/hosts
ip link set lo up
sysctl -qw net.ipv6.conf.all.disable_ipv6=1
ctl() { "$PYTHON" -m ctl --state-dir "$STATE" "$@"; }
trap 'ctl down >/dev/null 2>&1' EXIT
ctl up --demo --no-agent
ctl chat mock-small Hello
ctl down >/dev/null 2>&1
for service in registry router; do
    printf '{"host": "localhost"}' >"$STATE/$service.json"
done
ctl up --no-agent --registry-config "$STATE/registry.json" --router-config "$STATE/router.json"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a network without IPv6")
def test_everything_that_binds_or_asks_localhost_works_without_ipv6_W52(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(HOSTS)
    done = subprocess.run(
        ["unshare", "--net", "--mount", "bash", "-c", SCRIPT],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("SVC_")},
            "HOSTS_FILE": str(hosts),
            "STATE": str(tmp_path / "state"),
            "PYTHON": sys.executable,
            "SVC_ROUTER_WORKERS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "This is mock-small" in done.stdout
