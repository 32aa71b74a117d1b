"""The chart and the plain manifests: rendered by Helm's own library, judged by Kubernetes' schemas, and started as processes."""

import os
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from babysitter.settings import BabysitterSettings
from common.settings import options
from registry.settings import RegistrySettings
from router.settings import RouterSettings
from tests.babysitter.real import ask, until
from tests.ports import free_port
from tests.registry.processes import environment, running

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
TOOLS = ("helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0")
VERSIONS = ("1.30", "1.37")
ONE_REPLICA = """
auth: { secret: s }
replicas:
  - { name: a, replicas: 3, image: "x/y:1", drainSeconds: 1, graceSeconds: 1, healthPath: /health, config: "x = 1",
      resources: { limits: { nvidia.com/gpu: 2 } }, nodeSelector: { gpu: a100 } }
"""
ROOMS: dict[str, tuple[Any, str]] = {
    "svc-registry": (RegistrySettings, "SVC_REGISTRY_"),
    "svc-router": (RouterSettings, "SVC_ROUTER_"),
    "svc-babysitter": (BabysitterSettings, "SVC_BABYSITTER_"),
}


def manifests() -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all((FOLDER / "manifests.yaml").read_text()) if one]


def workloads() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each pod that runs a program of ours, and its container."""
    for one in manifests():
        if one["kind"] in ("Deployment", "StatefulSet"):
            pod = one["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            if container.get("args", [""])[0] in ROOMS:
                yield one, container


def variables(container: dict[str, Any]) -> dict[str, Any]:
    return {it["name"]: it.get("value", it.get("valueFrom")) for it in container["env"]}


def test_every_variable_is_a_setting_and_every_program_has_a_pod() -> None:
    seen = set()
    for _, container in workloads():
        program = container["args"][0]
        seen.add(program)
        model, prefix = ROOMS[program]
        known = {name for setting in options(model, prefix) for name in setting.env} | {f"{prefix}CONFIG"}
        ours = {name for name in variables(container) if name.startswith("SVC_")}
        assert ours <= known, ours - known
    assert seen == set(ROOMS)


def test_selectors_probes_and_volumes_name_what_is_there() -> None:
    for one in manifests():
        if one["kind"] not in ("Deployment", "StatefulSet"):
            continue
        template = one["spec"]["template"]
        assert one["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
        volumes = {it["name"] for it in template["spec"].get("volumes", ())}
        volumes |= {it["metadata"]["name"] for it in one["spec"].get("volumeClaimTemplates", ())}
        for container in (*template["spec"].get("initContainers", ()), *template["spec"]["containers"]):
            assert {it["name"] for it in container["volumeMounts"]} <= volumes
            ports = {it["name"] for it in container.get("ports", ())}
            for probe in ("readinessProbe", "livenessProbe"):
                assert probe not in container or container[probe]["httpGet"]["port"] in ports
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert template["spec"]["automountServiceAccountToken"] is False, "nothing needs the cluster's API"


def test_a_pod_is_given_the_time_that_its_programs_take_to_leave() -> None:
    for one, container in workloads():
        grace_s = one["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        given = variables(container)
        if container["args"][0] == "svc-router":
            assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
            assert grace_s > float(given["SVC_ROUTER_LEAVE_S"]) + float(given["SVC_ROUTER_DRAIN_TIMEOUT_S"])
            assert float(given["SVC_ROUTER_LEAVE_S"]) > 2 * container["readinessProbe"]["periodSeconds"]
        if container["args"][0] == "svc-babysitter":
            assert "--on-exit=stop" in container["args"]
            assert given["POD_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}
            assert given["SVC_BABYSITTER_ADVERTISE_HOST"] == "$(POD_IP)"
            assert grace_s > 60 + 30


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_a_replicas_pod_registers_itself_and_leaves_when_it_is_told_to(tmp_path: Path) -> None:
    (container,) = [it for _, it in workloads() if it["args"][0] == "svc-babysitter"]
    (config,) = [it["data"]["babysitter.toml"] for it in manifests() if it["kind"] == "ConfigMap"]
    (tmp_path / "babysitter.toml").write_text(config)
    with running(tmp_path) as (_, registry_url):
        _run_pod(tmp_path, container, registry_url)


def _run_pod(tmp_path: Path, container: dict[str, Any], registry_url: str) -> None:
    port = free_port()
    changed = {
        "SVC_BABYSITTER_NAME": "pod-1",
        "SVC_BABYSITTER_CONFIG": str(tmp_path / "babysitter.toml"),
        "SVC_BABYSITTER_HOST": "127.0.0.1",
        "SVC_BABYSITTER_ADVERTISE_HOST": "127.0.0.1",
        "SVC_BABYSITTER_PORT": str(port),
        "SVC_BABYSITTER_REGISTRY_URL": registry_url,
        "SVC_BABYSITTER_DATA_DIR": str(tmp_path / "data"),
        "SVC_BABYSITTER_LOG_DIR": str(tmp_path / "logs"),
    }
    left_out = {"POD_IP", "SVC_BABYSITTER_TOKEN_FILE"}
    given = {name: changed.get(name, value) for name, value in variables(container).items() if name not in left_out}
    assert given.keys() == changed.keys()
    with (tmp_path / "babysitter.log").open("ab") as log:
        pod = subprocess.Popen(
            [sys.executable, "-m", "babysitter", *container["args"][1:]],
            cwd=tmp_path, env={**environment(), **given}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:

        def records() -> set[str]:
            return {it["name"] for it in ask(f"{registry_url}/services")["services"]}

        until("both records are there", lambda: records() >= {"pod-1", "pod-1-server"}, 120)
        assert ask(f"http://127.0.0.1:{port}/v1/models")["data"][0]["id"] == "demo"
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(120) == 0
        assert not records() & {"pod-1", "pod-1-server"}
        assert ask(f"http://127.0.0.1:{port}/v1/models") is None, "its server has ended"
    finally:
        if pod.poll() is None:
            pod.kill()
            pod.wait()


# Rendered and judged by others' tools, which PyPI has.


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of programs: a Python with Helm's library, and kubernetes-validate."""
    folder = tmp_path_factory.mktemp("tools")
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile", *TOOLS], check=True)
    return folder / "bin"


def render(tools: Path, folder: Path, values: str | None = None) -> subprocess.CompletedProcess[str]:
    arguments = []
    if values is not None:
        (folder / "values.yaml").write_text(values)
        arguments.append(str(folder / "values.yaml"))
    command = [str(tools / "python"), str(FOLDER / "render.py"), *arguments]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)


@pytest.mark.world
@pytest.mark.timeout(560)
def test_the_plain_manifests_are_the_charts(tools: Path, tmp_path: Path) -> None:
    done = render(tools, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (FOLDER / "manifests.yaml").read_text(), "python deploy/kubernetes/render.py writes them anew"


@pytest.mark.world
@pytest.mark.timeout(560)
@pytest.mark.parametrize(
    "values",
    [
        None,
        "auth: { insecure: true }\n",
        "auth: { secret: s }\netcd: { enabled: false }\nregistry: { store: 'etcds://e:2379', replicas: 1 }\n",
        "auth: { secret: s }\nreplicas: []\n",
        ONE_REPLICA,
    ],
)
def test_what_the_chart_makes_keeps_to_kubernetes_schemas(tools: Path, tmp_path: Path, values: str | None) -> None:
    done = render(tools, tmp_path, values)
    assert done.returncode == 0, done.stderr
    (tmp_path / "made.yaml").write_text(done.stdout)
    for version in VERSIONS:
        command = [str(tools / "kubernetes-validate"), "--strict", "-k", version, str(tmp_path / "made.yaml")]
        judged = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert judged.returncode == 0, judged.stdout + judged.stderr
    wrong = done.stdout.replace("containerPort: 8000", "containerPort: http", 1)
    (tmp_path / "made.yaml").write_text(wrong)
    assert wrong != done.stdout
    command = [str(tools / "kubernetes-validate"), "--strict", str(tmp_path / "made.yaml")]
    assert subprocess.run(command, capture_output=True, check=False, timeout=120).returncode != 0, "it judges at all"


@pytest.mark.world
@pytest.mark.timeout(560)
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("{}\n", "auth.secret: name a secret with tokens, or set auth.insecure"),
        ("auth: { secret: s }\netcd: { enabled: false }\n", "registry.store: name an etcd"),
    ],
)
def test_what_would_be_open_or_without_a_store_is_not_rendered(
    tools: Path, tmp_path: Path, values: str, said: str
) -> None:
    done = render(tools, tmp_path, values)
    assert done.returncode != 0
    assert said in done.stderr
