"""The router as a process before servers that speak TLS and that nobody here wrote: uvicorn, and nginx with a base path."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from bench.router.peers import Debian
from tests.ports import free_port, is_free
from tests.router.test_process import Node, node

__all__ = ["node"]
KEY = "sk-of-the-replica"
APP = """
import json, sys
import uvicorn

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    seen = {name.decode(): value.decode() for name, value in scope["headers"]}
    allowed = seen.get("authorization") == "Bearer sk-of-the-replica"
    models = {"object": "list", "data": [{"id": sys.argv[2], "object": "model"}]}
    said = models if scope["path"] == "/v1/models" else {"path": scope["path"], "authorization": seen.get("authorization")}
    await send({"type": "http.response.start", "status": 200 if allowed else 401,
                "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(said if allowed else {}).encode()})

more = {"ssl_certfile": sys.argv[3], "ssl_keyfile": sys.argv[3]} if len(sys.argv) > 3 else {}
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", **more)
"""
CONFIG = """\
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {pem}; ssl_certificate_key {pem};
    location /team-a/ {{ proxy_pass http://127.0.0.1:{backend}/; }}
  }}
}}
"""


@asynccontextmanager
async def running(port: int, *command: str) -> AsyncIterator[None]:
    child = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(60):
            while is_free(port):
                await asyncio.sleep(0.05)
        yield
    finally:
        child.terminate()
        await child.wait()


def uvicorn(port: int, model: str, *pem: str) -> Any:
    return running(port, sys.executable, "-c", APP, str(port), model, *pem)


def certificate(folder: Path) -> tuple[Path, Path]:
    """Files of a CA, and of a server's key and chain."""
    ca, pem = folder / "ca.pem", folder / "server.pem"
    made = trustme.CA()
    made.cert_pem.write_to_path(str(ca))
    made.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
    return ca, pem


async def ask(node: Node, model: str) -> dict[str, Any]:
    """A chat's answer, by a client with credentials of its own; asked until the workers know the model."""
    body, headers = {"model": model, "messages": []}, {"Authorization": "Bearer of-the-client"}
    said: list[dict[str, Any]] = []

    async def answered() -> bool:
        async with node.http.post(f"{node.url}/v1/chat/completions", json=body, headers=headers) as answer:
            if answer.status == 200:
                said.append(await answer.json())
            return bool(said)

    await node.until(answered)
    return said[0]


async def test_uvicorn_with_tls_and_a_key_is_probed_and_asked_by_one_plan_W2_W3(node: Node, tmp_path: Path) -> None:
    ca, pem = certificate(tmp_path)
    port, key = free_port(), tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    record = {
        "name": "tls-server",
        "host": "localhost",
        "port": port,
        "hostname": "h",
        "url": f"https://localhost:{port}",
        "status": "running",
        "metadata": {"type": "openai-api", "api_key_label": "team-a"},
    }
    config = tmp_path / "router.json"
    config.write_text(json.dumps({"replica_ca_file": str(ca), "replica_keys": {"team-*": str(key)}}))
    async with node.registry(), node.router("--config", str(config)), uvicorn(port, "m", str(pem)):
        registry = f"http://127.0.0.1:{node.registry_port}/services"

        async def registered() -> bool:
            async with node.http.post(registry, json=record) as answer:
                return answer.status == 201

        await node.until(registered)
        # The model is learned over TLS, with the key.
        assert await ask(node, "m") == {"path": "/v1/chat/completions", "authorization": f"Bearer {KEY}"}
        shown = [json.dumps(await node.get(path)) for path in ("/services", "/status", "/stats")]
        async with node.http.get(registry) as answer:
            shown.append(await answer.text())
    logged = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert KEY not in "".join([*shown, logged])
    assert "of-the-client" not in logged


@pytest.mark.world
async def test_nginx_with_tls_and_a_base_path_is_a_static_replica_W2_W19(node: Node, tmp_path: Path) -> None:
    ca, pem = certificate(tmp_path)
    port, backend, key = free_port(), free_port(), tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    static = tmp_path / "static.json"
    entry = {"name": "gw", "url": f"https://localhost:{port}/team-a/v1", "api_key_file": str(key)}
    static.write_text(json.dumps([entry, {"name": "bad", "host": "h"}]))
    config = tmp_path / "nginx.conf"
    config.write_text(CONFIG.format(folder=tmp_path, port=port, backend=backend, pem=pem))
    program = await asyncio.to_thread(Debian("nginx", "nginx.conf", ["nginx"], []).prepare, tmp_path, install=True)
    flags = ("--static-services", str(static), "--replica-ca-file", str(ca))
    async with uvicorn(backend, "m"), running(port, program, "-c", str(config)), node.router(*flags):
        assert await ask(node, "m") == {"path": "/v1/chat/completions", "authorization": f"Bearer {KEY}"}
        assert (await node.get("/services"))["services"][0]["url"] == entry["url"]
