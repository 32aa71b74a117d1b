"""The migration pages name what there was, and what they promise is there."""

import re

import pytest

from babysitter.agent.settings import PLAIN_ENV
from babysitter.cbclient.modes import MODES
from babysitter.cbclient.params import server_environment
from tests.docs.pages import ROOT
from tests.docs.test_blocks import help_of

PAGES = {name: (ROOT / "docs/migration" / f"{name}.md").read_text() for name in ("infinilm-svc", "release-server")}
READERS = [*(ROOT / "script").glob("*.sh"), *(ROOT / "deploy/docker").glob("*.sh"), ROOT / "ctl/launcher/variables.py"]
SCRIPTS = "".join(path.read_text() for path in READERS)
OF_SERVERS = server_environment(
    model_name="", workdir="", multibox=None, namespace="", mode=MODES["replica"], job_priority="", app_tag=None, port=1,
    full_config="",
)  # fmt: skip
"""What a release server's replica is told."""
SETTINGS = (ROOT / "docs/reference/settings.md").read_text()
OLD_FLAGS = {
    "registry": "--port --host --health-interval --health-timeout --cleanup-interval",
    "router": "--router-port --registry-url --static-services --health-interval --health-timeout --max-errors "
    "--registry-sync-interval --service-removal-grace-period",
}


@pytest.mark.parametrize("name", PAGES)
def test_every_variable_of_the_page_is_read_by_a_script_or_a_process(name: str) -> None:
    table = "\n".join(line for line in PAGES[name].splitlines() if line.startswith("|"))
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)(?:=[^`]*)?`", table))
    assert len(named) > 5
    assert [
        one
        for one in sorted(named)
        if one not in SCRIPTS and f"`{one}`" not in SETTINGS and one not in PLAIN_ENV and one not in OF_SERVERS
    ] == []


def test_every_variable_of_the_old_scripts_is_in_the_table() -> None:
    table = (ROOT / "README.md").read_text().split("## Settings")[1]
    known = set(re.findall(r"`((?:REGISTRY|ROUTER|BABYSITTER|LAUNCH|HPCC|CUDA)_[A-Z_]+)`", table))
    ours = {f"ROUTER_{name}" for name in ("HOST", "MAX_ERRORS", "SERVICE_REMOVAL_GRACE_PERIOD", "STATIC_SERVICES")}
    ours |= {"REGISTRY_HOST", "LAUNCH_AGENT", "ROUTER_EXPOSE_REPLICA_API"}
    old = known - ours
    assert len(old) > 12
    assert [name for name in sorted(old) if f"`{name}`" not in PAGES["infinilm-svc"]] == []


def test_every_variable_of_the_old_service_is_in_the_table() -> None:
    assert [name for name in PLAIN_ENV if f"`{name}`" not in PAGES["release-server"]] == []


@pytest.mark.parametrize("room", OLD_FLAGS)
def test_every_old_flag_is_still_one(room: str) -> None:
    assert OLD_FLAGS[room] in PAGES["infinilm-svc"]
    shown = help_of(room)
    assert [flag for flag in OLD_FLAGS[room].split() if not re.search(rf"{flag}\b", shown)] == []


@pytest.mark.parametrize("name", PAGES)
def test_every_script_and_page_that_is_named_exists(name: str) -> None:
    for script in re.findall(r"`(?:\./)?script/([a-z0-9_]+\.sh)", PAGES[name]):
        assert (ROOT / "script" / script).is_file(), script
