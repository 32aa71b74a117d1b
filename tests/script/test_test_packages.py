"""What `script/test.sh` does about programs that tests need and this machine lacks."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "cut", "dirname", "env", "sort", "stat", "tr", "true")
SNIPPET = f'. "{ROOT}/script/lib.sh"; . "{ROOT}/script/test_packages.sh"; install_programs; echo tested; tell_missing'
PASSWORD = "#!/bin/sh\nexit 1\n"
APT = '#!/bin/sh\necho "apt-get $*" >&2\n[ "$1" = update ] || {{ for it in {made}; do printf "" >"{bin}/$it"; chmod +x "{bin}/$it"; done; }}\n'


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """All that is on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in (*TOOLS, "chmod"):
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    return folder


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def run(programs: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, "bash", "-c", SNIPPET],
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_where_packages_are_not_debians_the_last_lines_say_what_was_skipped_and_why(programs: Path) -> None:
    done = run(programs)
    assert done.returncode == 0
    last = done.stderr.splitlines()[-3:]
    assert last[0].startswith("skipped: the tests that need etcd etcdctl")
    assert "no Debian" in last[1]
    assert "apt-get install chromium" in last[2]


def test_what_is_missing_is_installed_and_then_nothing_is_said(programs: Path) -> None:
    every = "etcd etcdctl faketime prometheus promtool chromium cc systemd-analyze curl openssl node npm taskset ip"
    script(programs / "apt-get", APT.format(made=every, bin=programs))
    script(programs / "sudo", '#!/bin/sh\nshift\nexec "$@"\n')
    done = run(programs)
    assert "apt-get install -qq -y --no-install-recommends" in done.stderr
    assert "skipped" not in done.stderr


def test_a_sudo_that_asks_for_a_password_is_not_waited_for(programs: Path) -> None:
    script(programs / "apt-get", "#!/bin/sh\nexit 9\n")
    script(programs / "sudo", PASSWORD)
    setpriv = shutil.which("setpriv")
    prefix = [setpriv, "--reuid=65534", "--clear-groups"] if setpriv else []
    for folder in (programs, *programs.parents[:-2]):
        folder.chmod(0o755)
    done = run(programs, *prefix)
    assert "only root may install packages" in done.stderr.splitlines()[-2]
