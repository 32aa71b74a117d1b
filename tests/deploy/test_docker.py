"""The image and the compose file, as far as that can be seen without docker, which no test here may use.

The image's last stage is laid out in a folder from its own COPY lines, with the wheel in place of the first stage, and
its entry point is run. Every command of the compose file is read by the program that it names.
"""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from babysitter.settings import parse
from common.settings import load
from registry.settings import RegistrySettings
from router.settings import RouterSettings
from tests.deploy.installed import ROOT, bare_environment, build, environment
from tests.e2e.node import Node, ask, copy_tree, entry_point
from tests.ports import free_ports

DOCKER = ROOT / "deploy" / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
OURS = {name: it for name, it in COMPOSE["services"].items() if it.get("image") == "inference-svc"}
PREFIXES: dict[str, Any] = {"svc-registry": RegistrySettings, "svc-router": RouterSettings}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's lines, continued ones joined: instruction and the rest."""
    text = (DOCKER / "Dockerfile").read_text()
    joined = re.sub(r"\\\n\s*", "", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def last_stage() -> list[tuple[str, str]]:
    lines = instructions()
    return lines[max(index for index, (word, _) in enumerate(lines) if word == "FROM") :]


def settings_of(command: list[str]) -> Any:
    """What the program itself makes of its command line."""
    program, *words = command
    if program == "svc-babysitter":
        here = [word.replace("/app/", f"{ROOT}/") for word in words]
        return parse(here, {})
    return load(PREFIXES[program], prog=program, env_prefix="", argv=words, env={})


def test_the_image_is_built_in_two_stages_and_runs_as_nobody_special() -> None:
    words = [word for word, _ in instructions()]
    assert words.count("FROM") == 2
    final = dict(last_stage())
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", final["USER"])
    assert "HEALTHCHECK" in final
    assert [rest for word, rest in last_stage() if word in ("ADD", "ARG")] == []
    assert "pip" not in " ".join(rest for word, rest in last_stage() if word == "RUN")


@pytest.mark.parametrize(("variables", "port"), [({}, "8000"), ({"ROUTER_PORT": "8080"}, "8080")])
def test_the_image_asks_for_health_at_the_routers_port(variables: dict[str, str], port: str) -> None:
    command = dict(last_stage())["HEALTHCHECK"].partition(" CMD ")[2]
    told = subprocess.run(
        ["sh", "-c", f"echo {command}"], env=variables, capture_output=True, text=True, check=True, timeout=10
    )
    assert told.stdout.split() == ["/opt/venv/bin/python", "/app/deploy/docker/healthy.py", port]


def test_packages_are_installed_from_the_hashed_locks_only() -> None:
    installs = [rest for word, rest in instructions() if word == "RUN" and "$PIP install" in rest]
    assert len(installs) == 2
    assert all("--require-hashes" in rest or "--no-deps --no-build-isolation" in rest for rest in installs)


def test_nothing_that_a_checkout_may_hold_gets_into_the_image_W57() -> None:
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert {"dist", "build", "router/_compiled", "data", "logs", ".venv", ".git"} <= ignored


def test_the_environments_programs_are_on_path_and_its_python_is_not_W57() -> None:
    """On a server's own base `python3` is what its server runs with."""
    told = [rest for word, rest in last_stage() if word == "ENV"]
    assert not any(re.search(r"(^|\s)PATH=", rest) for rest in told)
    [linked] = [rest for word, rest in last_stage() if word == "RUN" and rest.startswith("ln -s")]
    assert linked.split()[2:] == ["/opt/venv/bin/svc-*", "/opt/venv/bin/svcctl", "/usr/local/bin/"]


def test_what_only_builds_is_told_from_what_the_suite_needs_W57() -> None:
    said = subprocess.run([sys.executable, DOCKER / "build_tools.py"], capture_output=True, text=True, check=True)
    listed = set(said.stdout.split())
    assert {"hatchling", "mypy", "setuptools"} <= listed
    assert listed.isdisjoint(
        {"inference-svc", "aiohttp", "yarl", "pydantic-core", "uvloop", "packaging", "typing-extensions"}
    )


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    ignored = set((ROOT / ".dockerignore").read_text().split())
    for word, rest in instructions():
        if word == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source not in ignored


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_started_with_a_command_that_its_program_takes(name: str) -> None:
    made = settings_of(OURS[name]["command"])
    assert made.host == "0.0.0.0"
    if name == "router":
        assert made.registry_url == ("http://registry:18000",)
    if name.startswith("replica"):
        assert (made.name, made.advertise_host) == (name, name)
        assert made.registry_url == ("http://registry:18000",)
        assert made.backend.type == "mock"


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_asked_for_its_health_at_the_port_it_has(name: str) -> None:
    made = settings_of(OURS[name]["command"])
    port = made.router_port if name == "router" else made.port + (1 if name.startswith("replica") else 0)
    assert OURS[name]["healthcheck"]["test"][-1] == str(port)
    for published in OURS[name].get("ports", []):
        assert published == f"127.0.0.1:{port}:{port}"


def test_two_replicas_serve_one_model_and_what_is_kept_has_a_volume() -> None:
    replicas = [settings_of(it["command"]) for name, it in OURS.items() if name.startswith("replica")]
    assert len(replicas) == 2
    assert replicas[0].backend.models == replicas[1].backend.models
    for it in OURS.values():
        assert it["read_only"]
        targets = {volume.split(":")[1] for volume in it["volumes"]}
        assert "/app/data" in targets
        assert {volume.split(":")[0] for volume in it["volumes"]} <= COMPOSE["volumes"].keys()


def test_everything_that_compose_mounts_from_here_exists() -> None:
    for it in COMPOSE["services"].values():
        for volume in it.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).resolve().exists(), source


def test_prometheus_finds_the_fleet_at_the_registry_and_has_the_rules() -> None:
    mounted = dict(volume.split(":")[:2] for volume in COMPOSE["services"]["prometheus"]["volumes"])
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    [found] = [it["http_sd_configs"][0]["url"] for it in config["scrape_configs"]]
    assert found == "http://registry:18000/sd/prometheus"
    assert {f"/etc/prometheus/{name}" for name in config["rule_files"]} <= set(mounted.values())
    assert COMPOSE["services"]["grafana"]["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"


def test_every_image_is_pinned() -> None:
    images = {it["image"] for it in COMPOSE["services"].values()} - {"inference-svc"}
    assert len(images) == 2
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images)


def test_nothing_is_published_beyond_this_machine() -> None:
    for it in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in it.get("ports", []))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The last stage's `/app`, its environment beside it, and free ports."""
    folder = tmp_path_factory.mktemp("image")
    tree, app = folder / "tree", folder / "app"
    copy_tree(tree)
    [wheel] = build(tree, folder / "built", "wheel")
    programs = environment(folder / "venv", wheel)
    for word, rest in last_stage():
        if word == "COPY" and "--from" not in rest:
            *sources, target = rest.split()
            for source in sources:
                into = app / target / ("" if (tree / source).is_dir() else Path(source).name)
                into.parent.mkdir(parents=True, exist_ok=True)
                (tree / source).rename(into)
    for name in ("logs", "data"):
        (app / name).mkdir()
    registry, router, agent, first, second = free_ports(5)
    for number, port in enumerate((first, second), 1):
        config = app / "config" / f"babysitter{number}.toml"
        config.write_text(re.sub(r"^port = \d+", f"port = {port}", config.read_text(), flags=re.MULTILINE))
    variables = bare_environment(programs) | {"SVC_SETUP": "skip", "SVC_VENV": str(folder / "venv")}
    variables |= {"REGISTRY_PORT": str(registry), "ROUTER_PORT": str(router), "AGENT_PORT": str(agent)}
    variables |= {"SVC_ROUTER_WORKERS": "1"}
    return Node(app, registry, router, variables)


@pytest.mark.e2e
@pytest.mark.world
def test_the_images_entry_point_runs_a_node_without_the_repository(image: Node) -> None:
    with entry_point(image.folder, image.environment, cwd=image.folder) as (entry, told):
        assert entry.poll() is None
        assert {model["id"] for model in ask(f"{image.router}/models")[1]["data"]} == {"mock-small", "mock-large"}
        healthy = [sys.executable, str(image.folder / "deploy/docker/healthy.py")]
        assert subprocess.run([*healthy, str(image.router_port)], check=False, timeout=30).returncode == 0
        assert subprocess.run([*healthy, "1"], check=False, timeout=30, stderr=subprocess.DEVNULL).returncode != 0
        entry.send_signal(signal.SIGTERM)
        assert entry.wait(60) == 0, told.read()


@pytest.mark.e2e
@pytest.mark.world
def test_the_entry_point_runs_the_words_it_is_given(image: Node) -> None:
    done = subprocess.run(
        [image.folder / "deploy/docker/entrypoint.sh", "svc-registry", "--help"],
        env=image.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
    assert "svc-registry" in done.stdout
