"""What `pip install` gives: the wheel and the sdist run from an empty directory, without the repository."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ctl.codes import Code
from tests.deploy.installed import ROOT, bare_environment, build, environment
from tests.e2e.node import copy_tree
from tests.ports import free_ports

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
pytestmark = pytest.mark.timeout(400)  # one wheel is compiled
START_S = 60.0
COMPILED = [
    ("", "--compiled", False),
    pytest.param("compiled_", "--compiled", True, marks=pytest.mark.world),  # compiles everything
    pytest.param("compiled_", "--no-compiled", False, marks=pytest.mark.world),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist."""
    folder = tmp_path_factory.mktemp("built")
    sdist, wheel = sorted(build(ROOT, folder), key=lambda path: path.suffix == ".whl")
    return wheel, sdist


@pytest.fixture(scope="module")
def compiled_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built where there is a C compiler, here one that works fast rather than well."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler: apt-get install gcc libc6-dev python3-dev")
    folder = tmp_path_factory.mktemp("compiled")
    compiler = folder / "fast-cc"
    compiler.write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    compiler.chmod(0o755)
    [wheel] = build(ROOT, folder / "built", "wheel", SVC_COMPILE="yes", CC=str(compiler))
    return wheel


@pytest.fixture(scope="module")
def programs(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("fresh") / "venv", built[0])


@pytest.fixture(scope="module")
def compiled_programs(compiled_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("fresh") / "venv", compiled_wheel)


NAMESAKES = ("babysitter", "common", "ctl", "registry", "router")


def put_namesakes(folder: Path) -> None:
    """Packages called as ours, which end whoever imports them."""
    for room in NAMESAKES:
        (folder / room).mkdir(parents=True)
        (folder / room / "__init__.py").write_text("raise SystemExit('a namesake was imported')")


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_has_the_rooms_inside_one_package_and_nothing_else_W30(built: tuple[Path, Path]) -> None:
    assert {name.split("/")[0] for name in contents(built[0])} == {"inference_svc"}
    inside = {name.split("/")[1] for name in contents(built[0])}
    assert inside == {"__init__.py", "__main__.py", "babysitter", "common", "config", "ctl", "registry", "router"}
    assert "inference_svc/config/templates/mock.toml" in contents(built[0])
    assert "inference_svc/registry/ui/page.html" in contents(built[0])
    assert [name for name in contents(built[0]) if "_compiled" in name or "__pycache__" in name] == []
    assert built[0].name.endswith("-py3-none-any.whl")


@pytest.mark.world  # compiles everything
def test_the_compiled_wheel_is_for_this_platform_and_adds_nothing_but_the_build(
    built: tuple[Path, Path], compiled_wheel: Path
) -> None:
    assert re.search(r"-cp3\d+-cp3\d+-linux_\w+\.whl$", compiled_wheel.name)
    added = contents(compiled_wheel) - contents(built[0])
    assert contents(built[0]) <= contents(compiled_wheel)
    assert {name.rpartition("/")[0].split("/")[1] for name in added} == {"_compiled"}
    assert any(re.search(r"/router/proxy/engine\.cpython-\w+-[\w-]+\.so$", name) for name in added)


@pytest.mark.e2e
@pytest.mark.parametrize(("form", "flag", "is_compiled"), COMPILED)
def test_a_router_from_a_wheel_runs_the_form_that_it_was_built_in(
    request: pytest.FixtureRequest, tmp_path: Path, form: str, flag: str, *, is_compiled: bool
) -> None:
    node = Node(request.getfixturevalue(f"{form}programs"), tmp_path)
    port = free_ports(1)[0]
    try:
        node.start("svc-router", f"--port={port}", "--workers=1", "--registry-url=", flag)
        node.ask(f"http://127.0.0.1:{port}/health")
    finally:
        assert node.stop() == {"svc-router": 0}
    lines = [json.loads(line) for line in (node.folder / "svc-router.log").read_text().splitlines()]
    assert [line["compiled"] for line in lines if line["event"] == "worker.serving"] == [is_compiled]
    reasons = [line["reason"] for line in lines if line["event"] == "workers.not_compiled"]
    assert len(reasons) == (not form)
    assert all("reinstall where there is a C compiler" in reason for reason in reasons)


def test_a_build_without_a_compiler_says_so_and_fails_if_it_was_to_compile(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-twheel"]
    for wanted, code in (("", 0), ("yes", 1)):
        env = {**os.environ, "CC": "/nonexistent/cc", "SVC_COMPILE": wanted}
        folder = tmp_path / f"built-{wanted}"
        done = subprocess.run(
            [*command, "-d", folder], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=100
        )
        assert done.returncode == code, done.stderr
        assert "no C compiler, for example: apt-get install gcc libc6-dev python3-dev" in done.stderr
        assert [path.name.endswith("-py3-none-any.whl") for path in folder.glob("*.whl")] == (
            [True] if not code else []
        )


def test_the_wheel_stands_beside_a_distribution_with_our_names_W30(programs: Path, tmp_path: Path) -> None:
    """Another distribution has installed packages called as ours, and PYTHONPATH names more of them."""
    python = programs / "python"
    said = subprocess.run(
        [python, "-c", "import inference_svc; print(inference_svc.HERE.parent)"],
        capture_output=True,
        text=True,
        check=True,
    )
    installed, mine = Path(said.stdout.strip()), tmp_path / "mine"
    try:
        put_namesakes(installed)
        put_namesakes(mine)
        environment = bare_environment(programs) | {"PYTHONPATH": str(mine)}
        for words in ([programs / "svc-router"], [programs / "svcctl"], [python, "-m", "inference_svc", "registry"]):
            done = subprocess.run(
                [*words, "--help"], cwd=mine, env=environment, capture_output=True, text=True, check=False, timeout=60
            )
            assert (done.returncode, done.stderr) == (0, "")
    finally:
        for room in NAMESAKES:
            shutil.rmtree(installed / room)


def test_the_sdist_makes_the_same_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [tree] = tmp_path.iterdir()
    [again] = build(tree, tmp_path / "again", "wheel")
    assert again.name == wheel.name
    assert contents(again) == contents(wheel)
    assert (tree / "script" / "launch_all.sh").is_file()
    assert (tree / "docs" / "README.md").is_file()


def test_tokens_and_keys_that_lie_in_the_folder_are_packed_nowhere(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    copy_tree(tree)
    (tree / "secrets").mkdir()
    made = ["secrets/read", "keys.toml", "admin.token", "config/team-a.key"]  # as docs/guides/security.md has them made
    for name in made:
        (tree / name).write_text("secret")
    [sdist] = build(tree, tmp_path / "built", "sdist")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert "config/babysitter1.toml" in packed
    assert packed.isdisjoint(made)
    assert {"secrets", "keys.toml", "**/*.token", "**/*.key"} <= set((ROOT / ".dockerignore").read_text().split())


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_every_program_explains_itself_from_an_empty_directory(name: str, programs: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [programs / name, "--help"],
        cwd=tmp_path,
        env=bare_environment(programs),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert name in done.stdout
    assert list(tmp_path.iterdir()) == []


@dataclass
class Node:
    """Programs of the fresh environment, run in an empty directory."""

    programs: Path
    folder: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                [self.programs / name, *words],
                cwd=self.folder,
                env=bare_environment(self.programs),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def ask(self, url: str, body: object = None, **headers: str) -> Any:
        """The JSON answer, as soon as there is one."""
        data = None if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        limit = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(urllib.request.Request(url, data, named), timeout=10) as answer:  # noqa: S310 - loopback
                    return json.load(answer)
            except (urllib.error.URLError, ConnectionError) as error:
                dead = [name for name, process in self.running.items() if process.poll() is not None]
                assert not dead, [(self.folder / f"{name}.log").read_text() for name in dead]
                if time.monotonic() > limit:
                    raise AssertionError(f"{url} did not answer") from error
                time.sleep(0.1)

    def stop(self) -> dict[str, int]:
        for process in reversed(self.running.values()):
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(60) for name, process in self.running.items()}


@pytest.fixture
def node(programs: Path, tmp_path: Path) -> Iterator[Node]:
    made = Node(programs, tmp_path)
    yield made
    for process in made.running.values():
        if process.poll() is None:
            process.kill()
            process.wait(10)


@pytest.mark.e2e
def test_the_installed_programs_serve_a_model_from_an_empty_directory(node: Node) -> None:
    registry, router, server = free_ports(3)
    config = node.folder / "mock.toml"
    config.write_text(
        f'name = "mock"\nport = {server}\nregistry_url = "http://127.0.0.1:{registry}"\n'
        '[backend]\ntype = "mock"\nmodels = ["mock-small"]\n'
    )
    node.start("svc-registry", "--port", str(registry))
    node.ask(f"http://127.0.0.1:{registry}/health")
    node.start("svc-babysitter", "--config-file", str(config), "--drain", "0")
    followed = f"--registry-url=http://127.0.0.1:{registry}"
    node.start("svc-router", f"--port={router}", "--workers=1", followed, "--access-log-sample=1")
    asked = {"model": "mock-small", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
    answer = node.ask(f"http://127.0.0.1:{router}/v1/chat/completions", asked, X_Request_Id="order-4711")
    assert answer["choices"][0]["message"]["content"]
    with urllib.request.urlopen(f"http://127.0.0.1:{registry}/ui", timeout=10) as page:
        assert b"<html" in page.read()  # what is no Python is in the wheel too
    assert node.stop() == {"svc-registry": 0, "svc-babysitter": 0, "svc-router": 0}
    # One id joins the router's line with the server's own.
    lines = [json.loads(line) for line in (node.folder / "svc-router.log").read_text().splitlines()]
    [line] = [line for line in lines if line["event"] == "request" and line["status"] == 200]
    assert (line["request_id"], line["replica"], line["service"]) == ("order-4711", "mock-server", "router")
    assert "request_id=order-4711" in (node.folder / "logs" / "server_mock_stdout.log").read_text()


def test_every_extra_installs_something(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    for extra in PROJECT["optional-dependencies"]:
        assert f"extra == '{extra}'" in text or f'extra == "{extra}"' in text


@pytest.mark.e2e
@pytest.mark.world
def test_a_whole_node_runs_among_folders_that_are_called_as_ours_W30(programs: Path, tmp_path: Path) -> None:
    """`svcctl up` in a project with its own `common/` and `router/`, and PYTHONPATH naming it: every process is ours."""
    put_namesakes(tmp_path)
    ports = [word for name in ("registry", "router", "agent") for word in (f"--{name}-port", str(free_ports(1)[0]))]
    state = ["--state-dir", str(tmp_path / "state")]
    told = tmp_path / "told"
    config = tmp_path / "own.toml"
    config.write_text(
        f'name = "own"\nport = {free_ports(2)[0]}\n[backend]\ntype = "command"\n'
        f"command = \"sh -c 'echo $PYTHONPATH > {told}; exec sleep 600'\"\n"
    )
    environment = bare_environment(programs) | {"PYTHONPATH": str(tmp_path)}

    def svcctl(*words: str, code: int = 0) -> None:
        done = subprocess.run(
            [programs / "svcctl", *words, *state],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == code, done.stdout + done.stderr

    try:
        svcctl("up", "--demo", "--demo-port", str(free_ports(4)[0]), *ports)
        svcctl("chat", "mock-small", "Hello")
        svcctl("up", str(config), "--timeout", "0", *ports, code=Code.TIME_IS_UP)
        assert told.read_text().strip() == str(tmp_path)  # it is the servers' all the same
    finally:
        svcctl("down")


def metadata_of(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return archive.read(name).decode()


def test_the_page_of_an_index_has_no_link_that_leads_nowhere_W61(
    built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = metadata_of(built[0])
    into_the_tree = re.compile(r"\]\((?!https?:|#)")
    assert into_the_tree.search((ROOT / "README.md").read_text())
    assert not into_the_tree.search(said)
    assert "docs/tutorial.md" in said
    for version in ("3.11", "3.12", "3.13"):
        assert f"Classifier: Programming Language :: Python :: {version}\n" in said
    assert "\nProject-URL:" not in said  # nobody knows it but who publishes
    base = "https://git.example/inference-svc/blob/v1"
    monkeypatch.setenv("SVC_PROJECT_URL", base)
    [wheel] = build(ROOT, tmp_path, "wheel")
    said = metadata_of(wheel)
    assert not into_the_tree.search(said)
    assert f"({base}/docs/tutorial.md)" in said
    assert f"Project-URL: Documentation, {base}/docs/README.md\n" in said
