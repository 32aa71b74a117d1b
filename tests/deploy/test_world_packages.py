"""The image under real docker, and the units under a real booted systemd (six minutes, as root; `script/test.sh --all`)."""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.installed import ROOT
from tests.deploy.machines import Booted, Machines, run, within

pytestmark = [pytest.mark.world, pytest.mark.timeout(1800)]
UNITS = ("registry", "router", "agent", "babysitter@babysitter1")
INSTALL = """
set -e
rm -rf /opt/inference-svc /etc/inference-svc /var/lib/inference-svc
id inference || useradd --system --home-dir /var/lib/inference-svc --shell /usr/sbin/nologin inference
mkdir /opt/inference-svc && tar -C /src --exclude=.git --exclude=.venv --exclude=data --exclude=logs -c . | tar -C /opt/inference-svc -x
/opt/inference-svc/script/setup.sh run
mkdir -p /etc/inference-svc/babysitters
cp /opt/inference-svc/config/babysitter1.toml /etc/inference-svc/babysitters/
cp /opt/inference-svc/deploy/systemd/* /etc/systemd/system/
cat >/etc/inference-svc/agent.toml <<'X'
registry_url = "http://localhost:18000"
babysitter_command = ["/opt/inference-svc/.venv/bin/python", "-P", "-m", "tests.babysitter.agent.mock_babysitter"]
X
echo CONFIG_FILE=/etc/inference-svc/agent.toml >/etc/inference-svc/agent.env
chmod -R a+rX /etc/inference-svc
systemctl enable inference-svc-registry inference-svc-router inference-svc-agent inference-svc-babysitter@babysitter1
"""


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    assert os.geteuid() == 0, "needs root: docker, namespaces"
    kept = os.environ.get("SVC_MACHINES")  # a folder that is used again: the second run needs no Debian and no build
    made = Machines(Path(kept) if kept else tmp_path_factory.mktemp("machines"))
    with made.stack:
        made.make()
        yield made


# -- the image


@pytest.fixture(scope="module")
def images(machines: Machines) -> Iterator[Machines]:
    machines.build_images()
    with machines.dockerd("nsenter", f"--net=/run/netns/{machines.network}"):
        yield machines


@pytest.fixture
def node(images: Machines) -> Iterator[Machines]:
    yield images
    images.docker("rm", "-fv", "node", check=False)


def start(node: Machines, *flags: str, image: str = "inference-svc") -> None:
    """As deploy/README.md says."""
    ports = ("-p", "127.0.0.1:8000:8000", "-p", "127.0.0.1:18000:18000")
    configs = ("-v", f"{ROOT}/config:/app/config:ro", "-e", "BABYSITTER_CONFIGS=babysitter1.toml babysitter2.toml")
    node.docker("run", "-d", "--name", "node", "--init", *ports, *configs, *flags, image)


def answers(node: Machines) -> None:
    try:
        within(120, "a model answers", lambda: node.asks("mock-large"))
    except AssertionError as error:
        raise AssertionError(node.docker("logs", "node")[-4000:]) from error


def test_the_readmes_container_answers_and_stops_within_dockers_ten_seconds_W55(node: Machines) -> None:
    start(node)
    answers(node)
    within(60, "healthy", lambda: "node" in node.docker("ps", "--filter", "health=healthy"))
    for _ in range(2):
        node.docker("stop", "node")  # ten seconds, then SIGKILL: 137
        assert node.docker("inspect", "node", "-f", "{{.State.ExitCode}}").strip() == "0"
        node.docker("start", "node")
        answers(node)


def test_a_read_only_container_without_capabilities_or_tmpfs_answers_and_doctor_finds_it_well_W60(
    node: Machines,
) -> None:
    start(node, "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
    answers(node)
    said = node.docker("exec", "node", "svcctl", "doctor")
    assert "all well" in said, said


def test_a_base_without_python_has_the_interpreter_that_comes_along_W57(node: Machines) -> None:
    start(node, image="on-a-bare-base")
    answers(node)
    assert "true" in node.docker(
        "run", "--rm", "--entrypoint", "sh", "on-a-bare-base", "-c", "command -v python3 || echo true"
    )


def test_what_built_the_image_is_not_in_it_W57(node: Machines) -> None:
    listed = node.docker(
        "run", "--rm", "--entrypoint", "sh", "on-a-bare-base", "-c", "ls /opt/venv/lib/python3*/site-packages"
    )
    assert "aiohttp" in listed
    assert {"mypy", "hatchling", "setuptools", "pip"}.isdisjoint(listed.split())
    assert "/opt/python/include" not in node.docker(
        "run", "--rm", "--entrypoint", "sh", "on-a-bare-base", "-c", "ls -d /opt/python/*"
    )


def test_a_logs_folder_of_roots_is_told_with_the_remedy_W60(node: Machines, tmp_path: Path) -> None:
    start(node, "-v", f"{tmp_path}:/app/logs")
    assert node.docker("wait", "node").strip() == "78"
    assert '--user "$(id -u):$(id -g)"' in node.docker("logs", "node")


# -- the units


@pytest.fixture(scope="module")
def booted(machines: Machines) -> Iterator[Booted]:
    made = Booted(machines)
    (machines.debian / "root/install.sh").write_text(INSTALL)
    run(*made.nspawn("bash", "/root/install.sh"))
    made.boot()
    try:
        within(90, "it answers after the boot", machines.asks)
        yield made
    finally:
        made.halt()


def unit(name: str) -> str:
    return f"inference-svc-{name}.service"


def server(booted: Booted) -> int:
    """Pid of the server that babysitter1 looks after."""
    found = re.search(r'"replica_pid": *(\d+)', booted.inside("curl", "-sf", "http://localhost:8002/info"))
    return int(found[1]) if found else 0


def test_every_unit_runs_and_systemd_finds_no_fault(booted: Booted) -> None:
    assert booted.inside("systemctl", "is-active", *map(unit, UNITS)).split() == ["active"] * len(UNITS)
    booted.inside("systemd-analyze", "verify", *map(unit, UNITS))
    assert '"compiled":true' in booted.inside("journalctl", "-u", unit("router"), "-o", "cat")


def test_a_server_outlives_its_babysitter_and_the_router_comes_back(booted: Booted) -> None:
    before = within(60, "a server", lambda: server(booted))
    booted.inside("systemctl", "restart", unit("babysitter@babysitter1"))  # returns when the new one serves
    assert server(booted) == before
    for name in ("registry", "router", "agent", "babysitter@babysitter1"):
        booted.inside("systemctl", "reload", unit(name))
    booted.inside("kill", "-9", booted.inside("systemctl", "show", "-p", "MainPID", "--value", unit("router")).strip())
    within(30, "the router is back", booted.machines.asks)
    assert server(booted) == before


def test_a_start_that_fails_fails_and_the_journal_calls_it_an_error_W59(booted: Booted) -> None:
    booted.sh("echo SVC_REGISTRY_PORT=many >/etc/inference-svc/registry.env")
    try:
        assert "failed" in booted.inside("systemctl", "restart", unit("registry"), check=False)
        assert booted.inside("systemctl", "is-active", unit("registry"), check=False).strip() == "failed"
        said = booted.inside("journalctl", "-u", unit("registry"), "-p", "err", "-o", "cat")
        assert "SVC_REGISTRY_PORT" in said
    finally:
        booted.sh("rm /etc/inference-svc/registry.env; systemctl restart inference-svc-registry")
    within(60, "all is well again", booted.machines.asks)


def test_a_server_that_was_ended_stays_ended_W53(booted: Booted) -> None:
    within(60, "a server", lambda: server(booted))
    booted.sh("curl -sf -X POST http://localhost:8002/stop")
    within(
        60,
        "its unit is down",
        lambda: "inactive" in booted.inside("systemctl", "is-active", unit("babysitter@babysitter1"), check=False),
    )
    time.sleep(5)
    assert booted.inside("systemctl", "is-active", unit("babysitter@babysitter1"), check=False).strip() == "inactive"
    assert booted.sh("curl -s -m 2 http://localhost:8001/v1/models || echo gone").strip() == "gone"
    booted.inside("systemctl", "start", unit("babysitter@babysitter1"))
    within(60, "it is back", booted.machines.asks)
    # In the other order: the stop was asked for, and the unit is stopped at once.
    booted.sh("curl -sf -X POST http://localhost:8002/stop; systemctl stop inference-svc-babysitter@babysitter1")
    within(
        30, "the server ends", lambda: "gone" in booted.sh("curl -s -m 2 http://localhost:8001/v1/models || echo gone")
    )
    booted.inside("systemctl", "start", unit("babysitter@babysitter1"))
    within(60, "it is back", booted.machines.asks)


LOAD = """
bad=0; n=0; end=$(($(date +%s) + 15))
while [ "$(date +%s)" -lt $end ]; do
  code=$(curl -s -m 30 -o /dev/null -w '%{http_code}' http://localhost:8000/health) || true
  n=$((n + 1)); [ "$code" = 200 ] || bad=$((bad + 1))
done
echo "$bad of $n"
"""


def test_a_restart_behind_the_socket_unit_refuses_nobody_W59(booted: Booted) -> None:
    booted.sh(
        "systemctl stop inference-svc-router; systemctl enable --now inference-svc-router.socket; systemctl start inference-svc-router"
    )
    try:
        within(60, "it answers", booted.machines.asks)
        booted.sh("(sleep 3; systemctl restart inference-svc-router) >/dev/null 2>&1 &")
        bad, _, asked = booted.sh(LOAD).strip().split()
        assert int(bad) == 0
        assert int(asked) > 50
    finally:
        booted.sh(
            "systemctl disable --now inference-svc-router.socket inference-svc-router; systemctl enable --now inference-svc-router"
        )
    within(60, "it answers without it", booted.machines.asks)


def test_it_answers_after_a_reboot(booted: Booted) -> None:
    booted.halt()
    booted.boot()
    within(120, "it answers after the reboot", booted.machines.asks)


CREATE = '{"server_mode": "replica", "model_name": "made", "placement": {"app_tag": "build-1b83940b24"}}'


def test_tokens_that_are_turned_on_keep_the_replicas_W54(booted: Booted) -> None:
    """As docs/guides/security.md has it. Last in this file: the node has tokens afterwards."""
    made = booted.sh(
        f"curl -sf http://localhost:18100/api/v1/replicas -H 'Content-Type: application/json' -d '{CREATE}'"
    )
    name = f"{json.loads(made)['replica_id']}-server"
    within(90, "the replica answers", lambda: booted.machines.asks("made"))
    booted.sh(
        """mkdir -p /etc/inference-svc/secrets; cd /etc/inference-svc/secrets
        for name in read register admin; do openssl rand -hex 32 >$name; done; chmod 600 *; chown -R inference: .
        dir=/etc/inference-svc/secrets
        printf 'SVC_REGISTRY_READ_TOKEN_FILE=%s/read\\nSVC_REGISTRY_REGISTER_TOKEN_FILE=%s/register\\nSVC_REGISTRY_ADMIN_TOKEN_FILE=%s/admin\\n' $dir $dir $dir >/etc/inference-svc/registry.env
        echo SVC_ROUTER_REGISTRY_TOKEN_FILE=$dir/read >/etc/inference-svc/router.env
        echo SVC_BABYSITTER_TOKEN_FILE=$dir/register >/etc/inference-svc/babysitter.env
        echo SVC_AGENT_REGISTRY_TOKEN_FILE=$dir/register >>/etc/inference-svc/agent.env
        systemctl restart inference-svc-registry inference-svc-router inference-svc-agent inference-svc-babysitter@babysitter1"""
    )
    time.sleep(40)  # longer than a lease and the router's patience
    within(60, "both answer still", lambda: booted.machines.asks("made") and booted.machines.asks())
    listed = booted.sh(
        'curl -sf http://localhost:18000/services -H "Authorization: Bearer $(cat /etc/inference-svc/secrets/read)"'
    )
    assert name in listed
