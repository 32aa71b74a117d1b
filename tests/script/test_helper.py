import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
Answers = dict[str, tuple[int, Any]]


def helper(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "script/helper.py", *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "http_proxy": "http://127.0.0.1:1", "no_proxy": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.fixture
def serve() -> Iterator[Callable[[Answers], str]]:
    """Serve fixed answers by path; gives the base URL."""
    servers = []

    def begin(answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, content = answers.get(self.path, (404, {"error": "no"}))
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def wait(*check: str, pid: int | None = None, timeout_s: str = "0.3") -> subprocess.CompletedProcess[str]:
    return helper("wait", "thing", str(os.getpid() if pid is None else pid), timeout_s, *check)


def test_wait_for_a_url_ignores_proxies(serve: Callable[[Answers], str]) -> None:
    assert wait("url", serve({"/health": (200, {})}) + "/health").returncode == 0


def test_wait_tells_what_is_missing_when_the_time_is_up(serve: Callable[[Answers], str]) -> None:
    done = wait("url", serve({"/health": (503, {})}) + "/health")
    assert done.returncode == 1
    assert "thing: not ready after 0 s:" in done.stderr
    assert "Service Unavailable" in done.stderr or "503" in done.stderr


def test_wait_ends_at_once_when_the_process_is_gone_or_a_zombie() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    done = wait("url", "http://127.0.0.1:1/", pid=child.pid, timeout_s="20")
    child.wait()
    assert done.returncode == 2
    assert wait("url", "http://127.0.0.1:1/", pid=0, timeout_s="20").returncode == 2


def test_a_strangers_answer_does_not_count_once_our_process_is_gone(serve: Callable[[Answers], str]) -> None:
    assert wait("url", serve({"/health": (200, {})}) + "/health", pid=0).returncode == 2


def test_a_strangers_answer_does_not_count_while_our_process_has_no_such_port(serve: Callable[[Answers], str]) -> None:
    with subprocess.Popen(["sleep", "60"]) as ours:
        try:
            done = wait("url", serve({"/health": (200, {})}) + "/health", pid=ours.pid)
        finally:
            ours.kill()
    assert done.returncode == 1
    assert "it does not listen yet" in done.stderr


def test_wait_for_a_server(serve: Callable[[Answers], str]) -> None:
    ready = serve({"/health": (200, {"status": "healthy", "infinilm_server_running": True})})
    assert wait("server", ready).returncode == 0


def test_a_server_that_starts_is_not_ready_yet(serve: Callable[[Answers], str]) -> None:
    starting = serve({"/health": (200, {"status": "starting", "infinilm_server_running": True})})
    done = wait("server", starting)
    assert done.returncode == 1
    assert "its server is starting" in done.stderr


def test_a_server_that_has_failed_is_told_at_once_with_its_reason(serve: Callable[[Answers], str]) -> None:
    health = {"status": "failed", "infinilm_server_running": False, "error_message": "no such model"}
    done = wait("server", serve({"/health": (200, health)}), timeout_s="20")
    assert done.returncode == 3
    assert "no such model" in done.stderr


def models(*names: str) -> tuple[int, Any]:
    return 200, {"object": "list", "data": [{"id": name} for name in names]}


def test_wait_until_the_router_lists_every_model(serve: Callable[[Answers], str]) -> None:
    router = serve({"/models": models("a", "b")})
    assert wait("routed", router, serve({"/models": models("a")}), serve({"/models": models("b")})).returncode == 0
    done = wait("routed", router, serve({"/models": models("a", "c")}))
    assert done.returncode == 1
    assert "the router does not list c yet" in done.stderr


def test_status_shows_a_file_that_was_refused_with_its_fault_W33(serve: Callable[[Answers], str]) -> None:
    refused = {"status": "healthy", "config_refused": "a.toml: unknown key 'weigth'"}
    url = serve({"/health": (200, refused), "/models": models("m")})
    shown = helper("status", f"babysitter_x,12,{url.rpartition(':')[2]},{url}").stdout
    assert "m (its file has a fault and is not in force: a.toml: unknown key 'weigth')" in shown


def test_models_are_printed_one_a_line(serve: Callable[[Answers], str]) -> None:
    assert helper("models", serve({"/models": models("b", "a")})).stdout == "a\nb\n"
    assert helper("models", "http://127.0.0.1:1").returncode == 1


def test_status_prints_a_table_and_tells_by_its_code_whether_all_is_well(serve: Callable[[Answers], str]) -> None:
    url = serve({"/health": (200, {"status": "healthy"}), "/models": models("m")})
    port = int(url.rpartition(":")[2])
    done = helper("status", f"registry,11,{port},{url}", f"babysitter_x,12,{port - 1},{url}")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "PROCESS       PID  PORT" + " " * (len(str(port)) - 4) + "  HEALTH   MODELS",
        f"registry      11   {port}  healthy",
        f"babysitter_x  12   {port - 1}  healthy  m",
    ]
    older = serve({"/health": (200, {"status": "healthy", "need_restart": ["backend"]}), "/models": models("m")})
    done = helper("status", f"babysitter_x,12,{port},{older}")
    assert "m (settings older than its file: backend)" in done.stdout
    done = helper("status", f"registry,11,{port},{url}", "router,,-,")
    assert done.returncode == 1
    assert "not running" in done.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("port = ", "not valid TOML"),
        ("name = 'x'", "'port' is missing"),
        ("port = 'x'", "'port': input should be a valid integer"),
        ("port = true", "'port': must be a number"),
        ("port = 8001", "'backend' is missing"),
        ("port = 8001\nrooter_url = 'x'\n[backend]\ntype = 'mock'\nmodels = ['m']", "unknown key 'rooter_url'"),
    ],
)
def test_a_faulty_configuration_is_named(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text)
    done = helper("config", str(file))
    assert done.returncode == 78
    assert str(file) in done.stderr
    assert expected in done.stderr


def test_a_configuration_gives_port_host_and_name(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("port = 8001\nname = 'replica-1'\n[backend]\ntype = 'mock'\nmodels = ['m']\n")
    assert helper("config", str(file)).stdout == "8001 localhost replica-1\n"
    file.write_text("port = 8001\n[backend]\ntype = 'mock'\nmodels = ['m']\n")
    assert helper("config", str(file)).stdout == "8001 localhost infinilm-mock-8001\n"


def test_variables_that_nobody_reads_are_said_before_a_launch_W58() -> None:
    env = {**os.environ, "SVC_ROUTR_PORT": "1", "SVC_AGENT_NOD": "n", "SVC_ROUTER_PORT": "8005", "SVC_SETUP": "skip"}
    done = subprocess.run(
        [sys.executable, "script/helper.py", "variables"], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines() == [
        "warning: nobody reads SVC_AGENT_NOD; did you mean SVC_AGENT_NODE?",
        "warning: nobody reads SVC_ROUTR_PORT; did you mean SVC_ROUTER_PORT?",
    ]


def test_a_logs_end_is_told_once_while_it_waits_W49(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("helper_alone", ROOT / "script" / "helper.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def check(_pid: int, *_args: str) -> None:
        raise module.NotYet("its server is starting: exited with code 1\nTHE LOG'S END")

    monkeypatch.setattr(module, "PROGRESS_S", 0.1)
    monkeypatch.setitem(module.CHECKS, "server", check)
    assert module.wait("r1", os.getpid(), 1.0, "server") == 1
    said = capsys.readouterr()
    assert said.out.count("exited with code 1") > 1
    assert (said.out + said.err).count("THE LOG'S END") == 1
