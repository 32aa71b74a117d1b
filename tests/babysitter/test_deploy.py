"""Replicas of the release server, deployed by real pip from a real index, around the stand-in server."""

import json
import os
import random
import signal
import ssl
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from babysitter import identity
from babysitter.cbclient.environments import Environments, link
from babysitter.state_file import decode
from tests.babysitter.conftest import BUILD, Registry
from tests.babysitter.real import Replica, ask, is_forking, replica, until
from tests.babysitter.stand_in.broken_index import broken_index
from tests.babysitter.stand_in.index import PASSWORD, Index
from tests.babysitter.stand_in.wheels import make_wheel, suite
from tests.ports import free_port

pytestmark = pytest.mark.xdist_group("devpi")


def wanted(tag: str = BUILD, *, stand_in: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    placement = {"app_tag": tag, "multibox": "dh1"}
    return {"placement": placement, "full_config": {"stand_in": stand_in or {}}, **more}


def installed(node: Replica) -> set[str]:
    site = next((node.home / "cbclient" / "lib").glob("python*/site-packages"))
    return {path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info")}


def reported(registry: Registry, node: Replica) -> dict[str, Any]:
    """The replica's report as the registry shows it."""
    record = ask(f"{registry.url}/services/{node.name}") or {}
    return {"compile_wsjob": [], "execute_wsjob": [], **record.get("metadata", {}).get("replica", {})}


def is_written_as(node: Replica, status: str) -> bool:
    return bool(node.state()["status"] == status)


def has_changed(node: Replica, pid: int) -> bool:
    """True when the server `pid` is known to be gone."""
    report = node.report()
    return report.get("status") == "starting" or report.get("replica_pid") not in (None, pid)


def tools(node: Replica) -> list[identity.Identity]:
    """Live pip and venv processes of the replica's deployment."""
    mark = node.state().get("memory", {}).get("deploying")
    return identity.bearers(mark) if mark else []


def test_request_becomes_a_ready_replica_with_its_jobs(tmp_path: Path, index: Index, registry: Registry) -> None:
    asked = wanted(stand_in={"compile_s": 0.2, "execute_jobs": 2}, run_diagnostics=True, request_id="req-1")
    client = {"index_url": index.url, "image_registry": "registry.example"}
    with replica(tmp_path, request=asked, client=client, top={"registry_url": registry.url}) as node:
        node.start()
        until("the first job in the registry", lambda: reported(registry, node)["compile_wsjob"])
        assert reported(registry, node)["status"] == "waiting_for_ready"
        pid = node.ready(60)
        until("all jobs in the registry", lambda: len(reported(registry, node)["execute_wsjob"]) == 2, 2)
        state = until("state", lambda: (s := node.state())["status"] == "ready" and s)
        assert [stage["name"] for stage in state["stages"]] == ["resolve", "venv", "install", "verify"]
        assert {stage["state"] for stage in state["stages"]} == {"done"}
        assert all(stage["took_s"] >= 0 for stage in state["stages"])
        assert (state["server_mode"], state["model_name"], state["multibox"]) == ("replica", "llama3.1-8b", "dh1")
        assert (state["replica_pid"], state["port"], state["request_id"]) == (pid, node.port, "req-1")
        moves = [json.loads(line) for line in node.log().splitlines() if "replica.moved" in line]
        assert {move["request_id"] for move in moves} == {"req-1"}
        assert state["venv_path"] == str(node.home / "cbclient")
        assert len(state["compile_wsjob"]) == 1
        assert [name[-1] for name in state["execute_wsjob"]] == ["0", "1"]
        assert until("diagnostics", lambda: node.state()["diagnostics"]) == {"passed": True}
        assert int((tmp_path / "root" / "state" / f"{node.name}.pid").read_text()) == node.babysitters[0].pid
        assert installed(node) == {
            "cerebras_inference_api_server-0.0.0+1b83940b24",
            "cerebras_inference_compiler-0.0.0+1b83940b24",
            "cerebras_pytorch-0.0.0+1b83940b24",
            "cerebras_appliance-0.0.0+1b83940b24",
            "cerebras_inference_workload-0.0.0+1b83940b24",
            "stand_in_dep-1.0",
        }
        told = node.server("/health")
        words = " ".join(told["argv"])
        assert f"--params {node.home}/params.yaml --fastapi --port {node.port} --mgmt_namespace inf-integ" in words
        assert "--cbcore registry.example/cbcore:build-1b83940b24" in words
        assert told["env"]["MODEL_NAME"] == "llama3.1-8b"
        assert told["env"] | {"MULTIBOX": "dh1", "NAMESPACE": "inf-integ", "MOCK_BACKEND": "false"} == told["env"]
        params = yaml.safe_load((node.home / "params.yaml").read_text())
        assert params == json.loads((node.home / "full_config.json").read_text())
        assert params["runconfig"]["model_dir"] == str(node.home / "model_dir")
        assert (node.home / "replica_stdout.log").read_text().startswith("compiling")
        answer = node.server("/v1/chat/completions", {"messages": []})
        assert answer["choices"][0]["message"]["content"] == "llama3.1-8b says hello"


def test_identical_environment_is_reused_at_a_twentieth_of_the_time(tmp_path: Path, index: Index) -> None:
    with replica(tmp_path, request=wanted("2.3.0"), client={"index_url": index.url}) as first:
        first.start()
        first.ready(60)
        built_s = sum(stage["took_s"] for stage in first.stages().values())
        with replica(tmp_path, name="second000000", request=wanted("2.3.0"), client={"index_url": index.url}) as second:
            second.start()
            second.ready(30)
            stages = second.stages()
            assert (stages["venv"]["state"], stages["install"]["state"]) == ("reused", "reused")
            reused_s = sum(stage["took_s"] for stage in stages.values())
            assert reused_s <= built_s / 20, (reused_s, built_s)
            assert "cerebras_pytorch-2.3.0" in installed(first)
            assert not [name for name in installed(first) if "+local" in name]  # the index has 2.3.0+local.9 as well
            assert (first.home / "cbclient").resolve() == (second.home / "cbclient").resolve()


def test_local_appliance_wheel_is_used_without_dependencies(tmp_path: Path, index: Index) -> None:
    tag = "260215-inference-202602201519-2373-9999f993"
    server = Path(__file__).parent / "stand_in" / "server.py"
    make_wheel(
        tmp_path / "cache" / "260215",
        "cerebras_appliance",
        "260215+inference.202602201519.2373.9999f993",
        file_version="260215.inference.202602201519.2373.9999f993",
        files={"cerebras/appliance/appliance_host_inference.py": server.read_text()},
        requires=("no-such-package",),
    )
    client = {"index_url": index.url, "artifact_cache": str(tmp_path / "cache")}
    asked = wanted(tag, cbclient_config={"app_tag": tag, "custom_requirements": ["stand-in-dep"], "use_uv": True})
    with replica(tmp_path, request=asked, client=client) as node:
        node.start()
        node.ready(60)
        names = {name.partition("-")[0] for name in installed(node)}
        assert names == {"cerebras_appliance", "stand_in_dep"}


def test_a_client_wheel_of_another_version_than_the_tag_installs_W22(tmp_path: Path, index: Index) -> None:
    """It brings what it needs of its own version; the build's packages then take their places."""
    needs = ("cerebras-inference-api-server==2.3.0",)
    wheel = make_wheel(tmp_path / "wheels", "cerebras-pytorch", "9.9.9", requires=needs)
    client = {"index_url": index.url, "wheel_dirs": [str(wheel.parent)]}
    asked = wanted(cbclient_config={"app_tag": BUILD, "cbclient_whl": str(wheel)})
    with replica(tmp_path, request=asked, client=client) as node:
        node.start()
        node.ready(60)
        found = installed(node)
        assert {"cerebras_pytorch-9.9.9", "cerebras_inference_api_server-0.0.0+1b83940b24"} <= found
        assert "cerebras_inference_workload-0.0.0+1b83940b24" in found


def test_a_request_without_a_build_runs_with_the_nodes_own_python_where_that_is_allowed_W41(
    tmp_path: Path, index: Index
) -> None:
    asked = wanted(placement={"multibox": "dh1"})
    with replica(tmp_path, request=asked, client={"index_url": index.url}) as node:
        node.start()
        assert "cbclient.own_python = true" in node.status("failed", 60)["error_message"]
    site = tmp_path / "own/lib/python3.11/site-packages/cerebras/inference/workload"
    site.mkdir(parents=True)
    (site / "main.py").write_text((Path(__file__).parent / "stand_in/server.py").read_text())
    python = tmp_path / "own/bin/python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{site.parents[2]}" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    client = {"index_url": index.url, "python": str(python), "own_python": True}
    with replica(tmp_path, name="own000000000", request=asked, client=client) as node:
        node.start()
        node.ready(60)
        assert node.stages()["install"]["state"] == "reused"
        assert (node.home / "cbclient").resolve() == (tmp_path / "own").resolve()
        assert "--cbcore" not in " ".join(node.server("/health")["argv"])


def test_unknown_build_fails_at_once_and_can_be_retried_once_it_is_there_B15(tmp_path: Path, index: Index) -> None:
    with replica(tmp_path, request=wanted("build-later"), client={"index_url": index.url}) as node:
        node.start()
        report = node.status("failed", 60)
        assert "install: not_found" in report["error_message"]
        assert node.stages()["install"]["attempt"] == 1
        assert not list((tmp_path / "root" / "environments").glob(".new-*"))
        index.upload(*suite(tmp_path / "later", "0.0.0+later"))
        assert ask(f"http://127.0.0.1:{node.port + 1}/retry", {})["status"] == "starting"
        node.ready(60)


def test_index_that_is_down_fails_after_bounded_tries_B15(tmp_path: Path) -> None:
    client = {"index_url": f"http://127.0.0.1:{free_port()}/simple/", "tries": 2, "stage_timeout_s": 2}
    with replica(tmp_path, request=wanted(), client=client) as node:
        node.start()
        report = node.status("failed", 60)
        assert "install:" in report["error_message"]
        assert node.stages()["install"]["attempt"] == 2
        assert not (node.home / "cbclient").exists()


@pytest.mark.parametrize(
    ("fault", "word", "longest_s"),
    [("hangs", "too_slow", 4), ("truncated", "", 30), ("hash", "hash_mismatch", 30)],
)
def test_index_that_delivers_nothing_good_fails_the_stage_and_keeps_the_environment_before_B15(
    tmp_path: Path, fault: str, word: str, longest_s: float
) -> None:
    before = tmp_path / "root" / "environments" / ("a" * 32)
    (before / "bin").mkdir(parents=True)
    (before / "bin" / "python").write_text("the one before")
    with broken_index(fault, "0.0.0+1b83940b24", tmp_path / "wheels") as index:
        client = {"index_url": index.url, "tries": 2, "stage_timeout_s": longest_s}
        with replica(tmp_path, request=wanted(), client=client) as node:
            node.home.mkdir(parents=True)
            link(node.home, before)
            node.start()
            report = node.status("failed", 90)
            assert report["error_message"].startswith(f"install: {word}")
            assert node.stages()["install"]["attempt"] == 2
            assert (node.home / "cbclient").resolve() == before
            assert (before / "bin" / "python").read_text() == "the one before"
            assert [path.name for path in before.parent.iterdir() if not path.name.startswith(".lock")] == [before.name]
            assert tools(node) == []


@pytest.mark.world
def test_index_behind_a_proxy_or_with_a_ca_of_its_own_is_used_and_a_missing_setting_named_W28(tmp_path: Path) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    version, clean = "0.0.0+1b83940b24", {"PIP_CERT": "", "SSL_CERT_DIR": str(tmp_path), "NO_PROXY": ""}

    def end_of_install(name: str, client: dict[str, Any], env: dict[str, str]) -> tuple[str, str]:
        with replica(tmp_path, name=name, request=wanted(), client={"tries": 1, **client}) as node:
            node.start(env={**clean, **env})
            until("begun", node.state_path().exists)
            until("installed or not", lambda: node.stages().get("install", {}).get("state") in ("done", "failed"))
            until("told", lambda: node.report().get("status") != "creating")
            return node.stages()["install"]["state"], str(node.report().get("error_message"))

    with broken_index("", version, tmp_path / "wheels", context) as index:
        over_tls = {"index_url": index.url}
        state, told = end_of_install("tls000000000", over_tls, {})
        assert (state, "index_tls" in told, "set cbclient.ca_file" in told) == ("failed", True, True)
        assert end_of_install("tls000000001", {**over_tls, "ca_file": str(tmp_path / "ca.pem")}, {})[0] == "done"
    with broken_index("", version, tmp_path / "wheels") as index:
        through = {"HTTP_PROXY": index.url.removesuffix("/simple/")}
        behind: dict[str, Any] = {"index_url": "http://index.example/simple/"}
        state, told = end_of_install("proxy0000000", behind, through)
        assert (state, "index_untrusted" in told, "cbclient.trusted_hosts" in told) == ("failed", True, True)
        assert end_of_install("proxy0000001", {**behind, "trusted_hosts": ["index.example"]}, through)[0] == "done"


def test_credentials_of_the_index_are_nowhere_to_be_seen(tmp_path: Path, index: Index) -> None:
    url = index.url.replace("http://", f"http://someone:{PASSWORD}@")
    with replica(tmp_path, request=wanted(), client={"index_url": url}) as node:
        node.start()
        seen: set[bytes] = set()
        until("install", lambda: node.state_path().exists() and tools(node))
        while node.report().get("status") == "creating":
            for tool in tools(node):
                try:
                    seen.add(Path(f"/proc/{tool.pid}/cmdline").read_bytes())
                except OSError:
                    continue
        node.ready(60)
        assert seen
        assert PASSWORD.encode() not in b"".join(seen)
        environ = Path(f"/proc/{node.report()['replica_pid']}/environ").read_bytes()
        assert PASSWORD.encode() not in environ
        for path in [*node.home.glob("*.log"), node.state_path(), tmp_path / "babysitter.log"]:
            assert PASSWORD not in path.read_text(), path
        assert not list((tmp_path / "root" / "environments").rglob("netrc"))


def test_port_that_the_server_chose_is_found(tmp_path: Path, index: Index, shared: Path) -> None:
    asked = wanted(stand_in={"port_file": True})
    with replica(tmp_path, shared=shared, name="shared000000", request=asked, client={"index_url": index.url}) as node:
        node.start()
        node.ready(60)
        report = node.report()
        chosen = json.loads((node.home / "api_server.json").read_text())["port"]
        assert report["port"] == chosen != node.port
        assert report["base_url"] == f"http://127.0.0.1:{chosen}"


@pytest.mark.timeout(240)
def test_deployment_cut_at_any_moment_completes_on_the_next_start_B16(tmp_path: Path, index: Index) -> None:
    rng = random.Random(3)
    with replica(
        tmp_path, request=wanted("260113.3-inference-2026-2384-8fb6d540"), client={"index_url": index.url}
    ) as node:
        for cut in range(4):
            babysitter = node.start()
            until("deploying", lambda: node.state_path().exists() and node.state()["memory"]["deploying"], 30)
            time.sleep(rng.uniform(0.0, 1.2) + 0.3 * cut)
            babysitter.kill()
            babysitter.wait()
        node.start()
        node.ready(90)
        assert len(node.processes()) == 1
        assert not list((tmp_path / "root" / "environments").glob(".new-*"))
        assert tools(node) == []


def test_stop_during_deployment_ends_pip_E2(tmp_path: Path, index: Index) -> None:
    with replica(tmp_path, request=wanted(), client={"index_url": index.url}) as node:
        babysitter = node.start("--on-exit", "stop")
        until("pip", lambda: node.state_path().exists() and tools(node))
        mark = node.state()["memory"]["deploying"]
        babysitter.terminate()
        assert babysitter.wait(60) == 0
        assert identity.bearers(mark) == []
        assert node.state()["status"] == "stopped"
        assert not list((tmp_path / "root" / "environments").glob(".new-*"))


def test_jobs_survive_three_restarts_in_order_and_orphans_are_cancelled_once(
    tmp_path: Path, index: Index, shared: Path
) -> None:
    log = tmp_path / "cancelled"
    cancel = ["sh", "-c", f"echo cancelled $0 | tee -a {log}", "{wsjob_id}"]
    asked = wanted(stand_in={"byte_s": 0.001})
    with replica(
        tmp_path,
        shared=shared,
        name="shared000001",
        request=asked,
        client={"index_url": index.url},
        jobs={"cancel_command": cancel},
    ) as node:
        node.start()
        known: list[str] = []
        for life in range(4):
            pid = node.ready(60)
            report = node.report()
            assert len(report["compile_wsjob"]) == len(report["execute_wsjob"]) == life + 1
            assert report["compile_wsjob"][:life] == known
            known = report["compile_wsjob"]
            if life == 1:
                node.babysitters[-1].kill()
                node.babysitters[-1].wait()
                node.start()
                assert node.ready(30) == pid
            os.kill(pid, signal.SIGKILL)
            until("noticed", partial(has_changed, node, pid))
        jobs = ask(f"http://127.0.0.1:{node.port + 1}/timeline")["jobs"]
        until("all cancelled", lambda: log.exists() and len(log.read_text().splitlines()) >= 8)
        lines = log.read_text().splitlines()
        assert len(lines) == len(set(lines))
        assert {f"cancelled {name}" for name in known} <= set(lines)
        assert len(jobs["attempts"]) >= 4


def test_server_that_fails_while_compiling_leaves_its_ids_and_its_log_A9(
    tmp_path: Path, index: Index, shared: Path
) -> None:
    asked = wanted(stand_in={"exit_code": 78, "compile_s": 0.3})
    with replica(tmp_path, shared=shared, name="shared000002", request=asked, client={"index_url": index.url}) as node:
        node.start()
        report = node.status("failed", 60)
        assert len(report["compile_wsjob"]) == 1
        assert report["error_message"].endswith("the stand-in fails as told")


def test_server_that_listens_nowhere_in_the_time_that_its_request_gives_fails_A10(
    tmp_path: Path, index: Index, shared: Path
) -> None:
    asked = wanted(timeouts={"port_discovery_timeout_s": 0.5})
    client = {"index_url": index.url, "command": ["sleep", "600"]}
    with replica(tmp_path, shared=shared, name="shared000004", request=asked, client=client) as node:
        node.probes["end_late"] = True
        node.start()
        report = node.status("failed", 60)
        assert report["error_message"].startswith("port_timeout: listens nowhere after 0.5 s")
        assert node.processes() == []


def test_a_compile_longer_than_its_requests_timeouts_goes_on_and_is_late_W43(
    tmp_path: Path, index: Index, shared: Path
) -> None:
    asked = wanted(stand_in={"compile_s": 2}, timeouts={"readiness_timeout_s": 0.5, "port_discovery_timeout_s": 0.5})
    with replica(tmp_path, shared=shared, name="shared000006", request=asked, client={"index_url": index.url}) as node:
        node.start()
        pid = until("late", lambda: (report := node.report()).get("late") and report["replica_pid"])
        assert node.health()["display_status"] == "Pending"
        assert node.ready(60) == pid
        assert (node.report()["late"], node.report()["restart_count"]) == (False, 0)


def test_detach_is_the_default_of_a_replica_and_a_call_stops_it_B10(tmp_path: Path, index: Index, shared: Path) -> None:
    with replica(
        tmp_path, shared=shared, name="shared000003", request=wanted(), client={"index_url": index.url}
    ) as node:
        first = node.start()
        pid = node.ready(60)
        first.terminate()
        assert first.wait(60) == 0
        assert node.server("/health")["status"] == "ok"
        second = node.start()
        assert node.ready(30) == pid
        assert ask(f"http://127.0.0.1:{node.port + 1}/stop", {"force": False})["status"] == "stopping"
        assert second.wait(60) == 0
        assert node.processes() == []
        assert not (shared / "state" / f"{node.name}.pid").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_full_disk_fails_the_deployment_and_nothing_else_B17(tmp_path: Path, index: Index) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert os.system(f"mount -t tmpfs -o size=120k tmpfs {root}") == 0  # noqa: S605 - our own path
    try:
        with replica(tmp_path, request=wanted(), client={"index_url": index.url, "tries": 1}) as node:
            node.start()
            report = node.status("failed", 60)
            assert "no_space" in report["error_message"]
            assert not list((root / "environments").glob(".new-*"))
    finally:
        os.system(f"umount -l {root}")  # noqa: S605 - our own path


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_fifty_babysitters_killed_during_deploy_start_compile_and_service_leave_one_server(
    tmp_path: Path, index: Index
) -> None:
    rng = random.Random(50)
    for build in range(5):
        index.upload(*suite(tmp_path / "wheels", f"0.0.0+soak.{build}"))
        asked = wanted(f"0.0.0+soak.{build}", stand_in={"compile_s": 1, "execute_s": 0.5})
        with replica(tmp_path, name=f"soak0000000{build}", request=asked, client={"index_url": index.url}) as node:
            for _ in range(10):
                babysitter = node.start()
                time.sleep(rng.uniform(0.0, 4.0))
                babysitter.kill()
                babysitter.wait()
                assert len([pid for pid in node.processes() if not is_forking(pid)]) <= 1
                if node.state_path().exists():
                    decode(node.state_path().read_bytes())
            node.start()
            pid = node.ready(120)
            assert node.processes() == [pid]
            until("state", partial(is_written_as, node, "ready"))
            state = node.state()
            assert state["replica_pid"] == pid
            assert len(state["compile_wsjob"]) == len(set(state["compile_wsjob"])) >= 1
            assert not list((tmp_path / "root" / "environments").glob(".new-*"))


def test_environment_without_users_is_removed_and_a_used_one_stays(tmp_path: Path) -> None:
    environments = Environments(tmp_path)
    for key in ("a" * 32, "b" * 32):
        environments.path(key).mkdir(parents=True)
    (tmp_path / "replica").mkdir()
    link(tmp_path / "replica", environments.path("a" * 32))
    assert environments.collect() == ["b" * 32]
    assert (tmp_path / "replica" / "cbclient").is_dir()
    (tmp_path / "replica" / "cbclient").unlink()
    assert environments.collect() == ["a" * 32]


async def test_killed_builders_leftovers_are_removed_and_never_used_B16(tmp_path: Path) -> None:
    environments = Environments(tmp_path)
    key = "c" * 32
    async with environments.building(key) as fresh:
        leftover = fresh.with_name(f".new-{key}-killed")
        leftover.mkdir()
    async with environments.building(key) as fresh:
        assert not leftover.exists()
        (fresh / "bin").mkdir()
        (fresh / "bin" / "tool").write_text(f"#!{fresh}/bin/python\n")
        (fresh / "pyvenv.cfg").write_text("home = /usr\n")
        assert not environments.is_complete(key)
        environments.finish(key, fresh, b"lock")
    assert environments.is_complete(key)
    assert (environments.path(key) / "bin" / "tool").read_text() == f"#!{environments.path(key)}/bin/python\n"
    (environments.path(key) / "lock.txt").write_bytes(b"changed")
    assert not environments.is_complete(key)
