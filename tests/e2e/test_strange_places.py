"""The README's commands where a stranger may type them: with Debian's Python alone, as root and as anybody, without IPv6,
behind a proxy's variables, in a folder with blanks, called from one that has modules of our names.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.e2e.node import copy_tree

pytestmark = [pytest.mark.world, pytest.mark.timeout(900)]
PYTHON = "/usr/bin/python3"
ANYBODY = 54_321
NODE = r"""
set -e
ip link set lo up
sysctl -qw net.ipv6.conf.all.disable_ipv6=1
exec setpriv --reuid "$1" --regid "$1" --clear-groups bash -ec '
  "$0/script/launch_all.sh"
  curl -sf --noproxy "*" localhost:8000/chat/completions -H "Content-Type: application/json" \
    -d "{\"model\": \"mock-small\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}"
  "$0/script/status.sh"
  "$0/.venv/bin/svcctl" doctor || true
  "$0/script/stop_all.sh"
' "$2"
"""


@pytest.fixture(scope="module", autouse=True)
def _debians_python() -> None:
    """Debian's Python with venv, and what makes a network without IPv6; installed where they are missing."""
    has_venv = subprocess.run([PYTHON, "-c", "import venv, ensurepip"], check=False, capture_output=True)
    if has_venv.returncode != 0:
        packages = ["python3", "python3-venv", "iproute2", "procps", "curl"]
        subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=300)
        subprocess.run(["apt-get", "install", "-qq", "-y", *packages], check=True, timeout=600)


@pytest.mark.parametrize("user", [0, ANYBODY], ids=["root", "anybody"])
def test_readme_works_wherever_a_stranger_types_it_W29_W30_W52(user: int) -> None:
    assert os.geteuid() == 0, "this test makes a network of its own and another user: run it as root"
    base = Path(tempfile.mkdtemp(prefix="a stranger "))  # pytest's own folders are root's alone
    project, caller = base / "inference svc", base / "caller"
    copy_tree(project)
    for name in ("common", "router", "registry", "babysitter"):
        (caller / name).mkdir(parents=True)
        (caller / name / "__init__.py").write_text("raise ImportError('the caller has a module of this name')\n")
    subprocess.run(["chown", "-R", f"{user}:{user}", str(base)], check=True)
    passed = ("PIP_", "SSL_", "REQUESTS_", "CURL_", "LANG")
    env = {name: value for name, value in os.environ.items() if name.startswith(passed)}
    env |= {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(base), "SVC_PYTHON_FOR_VENV": PYTHON}
    env |= {"PYTHONPATH": str(caller)}
    try:
        as_user = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"]
        made = subprocess.run(
            [*as_user, str(project / "script" / "setup.sh")], cwd=caller, env=env, text=True, capture_output=True, timeout=600,
            check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr
        dead = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:1")
        done = subprocess.run(
            ["unshare", "-n", "bash", "-c", NODE, "_", str(user), str(project)],
            cwd=caller, env={**env, **dead}, text=True, capture_output=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert '"object":"chat.completion"' in done.stdout
        assert "healthy" in done.stdout
    finally:
        subprocess.run(["rm", "-rf", str(base)], check=True)
