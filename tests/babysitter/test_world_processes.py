"""Servers nobody here wrote, which rewrite what others see of them: ready, adopted, and ended whole (`-m world`)."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from babysitter import identity
from tests.babysitter.real import Node, ask, debian, running, until
from tests.ports import free_port

pytestmark = [pytest.mark.world, pytest.mark.timeout(300)]
MODELS = '{"object":"list","data":[{"id":"m","object":"model"}]}'
GUNICORN = """
import subprocess
bind = "127.0.0.1:{port}"
workers = 2
def post_fork(server, worker):
    subprocess.Popen(["env", "-i", "sleep", "600"], start_new_session=True)
"""
APPLICATION = f"""
def app(environ, start):
    start("200 OK", [("Content-Type", "application/json")])
    return [b'{MODELS}']
"""
NGINX = """
daemon off; worker_processes 2; pid {folder}/nginx.pid; error_log stderr;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{ listen 127.0.0.1:{port}; location / {{ default_type application/json; return 200 '{models}'; }} }}
}}
"""


def gunicorn(folder: Path, port: int) -> dict[str, Any]:
    """gunicorn with setproctitle, whose workers start a process each that is in no session of theirs."""
    site = folder / "site"
    words = [sys.executable, "-m", "pip", "install", "-q", "--target", str(site), "gunicorn", "setproctitle"]
    subprocess.run(words, check=True)
    (folder / "config.py").write_text(GUNICORN.format(port=port))
    (folder / "application.py").write_text(APPLICATION)
    args = ["-m", "gunicorn", "-c", str(folder / "config.py"), "application:app"]
    env = {"PYTHONPATH": str(site)}
    return {"type": "command", "command": sys.executable, "args": args, "work_dir": str(folder), "env": env}


def nginx(folder: Path, port: int) -> dict[str, Any]:
    """nginx in the foreground."""
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, models=MODELS))
    return {"type": "command", "command": debian("nginx"), "args": ["-c", str(folder / "nginx.conf")]}


def kernel_family(node: Node, count: int) -> list[int]:
    return list(until("its processes", lambda: len(found := node.processes()) == count and found))


@pytest.mark.parametrize(("make", "count"), [(gunicorn, 5), (nginx, 3)])
def test_server_that_rewrites_its_environment_is_adopted_and_ended_whole_W25(
    tmp_path: Path,
    make: Any,
    count: int,
) -> None:
    port = free_port()
    with running(tmp_path, port=port, backend=make(tmp_path, port)) as node:
        first = node.start()
        pid = node.ready()
        pids = kernel_family(node, count)
        assert not identity.carries(pid, node.attempts()[0])
        first.kill()
        first.wait()
        second = node.start()
        assert node.ready() == pid
        assert ask(f"http://127.0.0.1:{node.port + 1}/stop", {}) is not None
        assert second.wait(60) == 0
        assert [found for found in pids if Path(f"/proc/{found}").exists() and identity.start_ticks(found)] == []


@pytest.mark.parametrize("make", [gunicorn, nginx])
def test_server_that_was_killed_leaves_no_worker_and_starts_again_W50(tmp_path: Path, make: Any) -> None:
    port = free_port()
    with running(tmp_path, port=port, backend=make(tmp_path, port)) as node:
        node.start()
        pid = node.ready()
        pids = node.processes()
        os.kill(pid, 9)
        until("all of them ended", lambda: not any(identity.start_ticks(found) for found in pids))
        until("another server", lambda: node.report().get("replica_pid") not in (None, pid))
        assert node.ready() not in pids
