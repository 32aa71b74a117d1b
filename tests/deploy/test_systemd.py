"""The units: systemd takes them, they end what they should end and nothing else, and they start programs that exist."""

import configparser
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
OUTLIVED = ("babysitter@", "agent")
"""Units whose servers go on without them."""
MOST_EXPOSED = {"registry": 2.0, "router": 2.0, "babysitter@": 6.0, "agent": 6.0}
"""`systemd-analyze security`: 0 is a sealed box, 10 an open door. A server's own needs are not known to us."""
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="apt-get install systemd")


def short(path: Path) -> str:
    return path.stem.removeprefix("inference-svc-")


def service(path: Path) -> dict[str, list[str]]:
    """The `[Service]` section; a key may stand in it several times."""
    found: dict[str, list[str]] = {}
    section = path.read_text().split("[Service]")[1].split("[Install]")[0]
    for line in section.splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def installed(path: Path, folder: Path) -> Path:
    """The unit as an administrator would have it, with a program that exists here in place of ours."""
    text = re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", path.read_text())
    target = folder / path.name.replace("@.", "@qwen.")
    target.write_text(text)
    if "@" in path.name:
        (folder / path.name).write_text(text)
    return target


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False, timeout=60)


@needs_systemd
@pytest.mark.parametrize("path", UNITS, ids=short)
def test_systemd_finds_no_fault_in_the_unit(path: Path, tmp_path: Path) -> None:
    done = analyze("verify", "--man=no", str(installed(path, tmp_path)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
def test_systemd_finds_no_fault_in_the_routers_socket_W59(tmp_path: Path) -> None:
    [router] = [path for path in UNITS if short(path) == "router"]
    installed(router, tmp_path)
    socket = shutil.copy(router.with_suffix(".socket"), tmp_path)
    done = analyze("verify", "--man=no", str(socket))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
def test_systemd_would_find_a_fault(tmp_path: Path) -> None:
    broken = installed(UNITS[0], tmp_path)
    broken.write_text(broken.read_text().replace("KillMode=process", "KillMode=sometimes").replace("User=", "Usr="))
    assert analyze("verify", "--man=no", str(broken)).stderr


@needs_systemd
@pytest.mark.parametrize("path", UNITS, ids=short)
def test_the_unit_is_closed_as_far_as_its_work_allows(path: Path, tmp_path: Path) -> None:
    done = analyze("security", "--offline=true", "--no-pager", str(installed(path, tmp_path)))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) <= MOST_EXPOSED[short(path)]


@pytest.mark.parametrize("path", UNITS, ids=short)
def test_servers_outlive_the_units_that_look_after_them_B10(path: Path) -> None:
    found = service(path)
    if short(path) not in OUTLIVED:
        assert "KillMode" not in found
        return
    assert found["KillMode"] == ["process"]
    assert found["OOMPolicy"] == ["continue"]
    # What systemd takes away when a unit stops may not be what its server stands on, and its devices stay open.
    assert not {"PrivateTmp", "RuntimeDirectory", "PrivateDevices", "DevicePolicy", "ProtectClock"} & found.keys()


@pytest.mark.parametrize("path", UNITS, ids=short)
def test_a_unit_is_started_again_but_not_with_wrong_settings_W53_W59(path: Path) -> None:
    found = service(path)
    # A server that was ended by a call stays ended (W53).
    assert found["Restart"] == ["on-failure" if short(path) == "babysitter@" else "always"]
    assert found["Type"] == ["notify"]
    assert "StartLimitIntervalSec=0\n" in path.read_text().split("[Service]")[0]
    assert found["RestartPreventExitStatus"] == ["78"]
    assert found["NoNewPrivileges"] == ["true"]
    assert found["User"] == ["inference"]


@pytest.mark.parametrize("path", UNITS, ids=short)
def test_a_unit_starts_one_of_our_programs_with_flags_that_it_has(path: Path) -> None:
    program, *words = service(path)["ExecStart"][0].split()
    scripts: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    name = Path(program).name
    assert program == f"/opt/inference-svc/.venv/bin/{name}"
    flags = set(
        re.findall(r"^\| `[a-z_.]+` \|([^|]*)\|", (ROOT / "docs/reference/settings.md").read_text(), re.MULTILINE)
    )
    known = set(re.findall(r"--[a-z-]+", " ".join(flags))) | {"--config", "--config-file"}
    assert name in scripts
    assert {word for word in words if word.startswith("--")} <= known


def test_the_page_names_every_unit_and_every_file_that_a_unit_reads() -> None:
    page = (ROOT / "deploy" / "README.md").read_text()
    for path in UNITS:
        assert path.stem.rstrip("@") in page
        for file in service(path).get("EnvironmentFile", []):
            assert Path(file).name.replace("%i", "NAME") in page


def test_units_are_files_that_other_tools_can_read_too() -> None:
    for path in UNITS:
        reader = configparser.ConfigParser(strict=False, interpolation=None)
        reader.read(path)
        assert {"Unit", "Service", "Install"} <= set(reader.sections())
