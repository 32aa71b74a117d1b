"""A real FastAPI server behind a real router: what a key does not allow is never run, however the request names it."""

import asyncio
import hashlib
import io
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from tests.ports import free_port
from tests.router.test_process import Node, process

pytestmark = pytest.mark.e2e

SERVER = """
import sys
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File, Form, Request, UploadFile

app = FastAPI()


@app.get("/health")
@app.get("/v1/models")
def models():
    return {"object": "list", "data": [{"id": "small"}, {"id": "large"}]}


@app.post("/v1/audio/transcriptions")
async def transcribe(model: Annotated[str, Form()] = "none", file: Annotated[UploadFile | None, File()] = None):
    return {"ran": model, "bytes": len(await file.read()) if file else 0}


@app.post("/v1/embeddings")
async def embed(request: Request, model: str | None = None):
    return {"ran": model or (await request.json()).get("model")}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
"""
KEY = "key-of-the-small"
FORM = "multipart/form-data; boundary=b"
AUDIO = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'


@asynccontextmanager
async def fastapi_behind_a_router(folder: Path, *more: str) -> AsyncIterator[tuple[Node, aiohttp.ClientSession]]:
    (folder / "server.py").write_text(SERVER)
    port = free_port()
    static = [{"name": "api", "host": "127.0.0.1", "port": port, "metadata": {"models": ["small", "large"]}}]
    (folder / "static.json").write_text(json.dumps(static))
    keys = folder / "keys.toml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys.write_text(f'[[keys]]\nname = "team"\nsha256 = "{digest}"\nmodels = ["small", "both"]\n')
    keys.chmod(0o600)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
        node = Node(folder, http)
        server = await asyncio.create_subprocess_exec(sys.executable, "server.py", str(port), cwd=folder)
        try:
            flags = ("--registry-url", "http://127.0.0.1:9", "--workers", "1", *more)
            flags = ("--static-services", "static.json", "--api-keys-file", str(keys), *flags)
            async with process("router", "--router-port", str(node.router_port), *flags, cwd=folder):

                async def is_served() -> bool:
                    return bool((await node.get("/models"))["data"])

                await node.until(is_served)
                yield node, http
        finally:
            server.terminate()
            await server.wait()


async def ask(node: Node, path: str, body: bytes, content_type: str) -> tuple[int, Any]:
    headers = {"Content-Type": content_type}
    async with node.http.post(node.url + path, data=io.BytesIO(body), headers=headers) as answer:
        told = await answer.json()
        return answer.status, told.get("ran", told.get("error"))


def form(*models: bytes) -> bytes:
    return AUDIO + b"".join(b"--b\r\n%b\r\n\r\n%b\r\n" % tuple(one.split(b"|")) for one in models) + b"--b--\r\n"


LARGE = {
    "quoted": form(b'Content-Disposition: form-data; name="model"|large'),
    "as .NET writes it": form(b"Content-Disposition: form-data; name=model|large"),
    "NAME": form(b'Content-Disposition: form-data; NAME="model"|large'),
    "more parameters": form(b'Content-Disposition: form-data; name="model"; x=y|large'),
    "folded": form(b'Content-Disposition: form-data;\r\n name="model"|large'),
    "after a quoted one": form(
        b'Content-Disposition: form-data; name="model"|small', b"Content-Disposition: form-data; name=model|large"
    ),
    "before a quoted one": form(
        b"Content-Disposition: form-data; name=model|large", b'Content-Disposition: form-data; name="model"|small'
    ),
}
SMALL = form(b"Content-Disposition: form-data; name=model|small")


async def test_key_for_the_small_never_reaches_the_large_W1(tmp_path: Path) -> None:
    async with fastapi_behind_a_router(tmp_path) as (node, _):
        audio, vectors = "/v1/audio/transcriptions", "/v1/embeddings"
        urlencoded = "application/x-www-form-urlencoded"
        assert await ask(node, audio, SMALL, FORM) == (200, "small")
        assert await ask(node, audio, b"model=small", urlencoded) == (200, "small")
        assert await ask(node, vectors, b'{"model":"small"}', urlencoded) == (200, "small")
        assert await ask(node, vectors + "?model=small", b'{"model":"small"}', "application/json") == (200, "small")
        ran = {name: await ask(node, audio, body, FORM) for name, body in LARGE.items()}
        for path, body, content_type in (
            (audio, b"model=large", urlencoded),
            (audio, b"model=small&model=large", urlencoded),
            (audio, b"mode%6c=large", urlencoded),
            (audio, b'{"model":"small","x":"&model=large&"}', urlencoded),
            (vectors, b'{"model":"small","model":"large"}', "application/json"),
            (vectors, b'{"model":"small","MODEL":"large"}', "application/json"),
            (vectors + "?model=large", b'{"model":"small"}', "application/json"),
            (vectors + "?mod%65l=large", b'{"model":"small"}', "application/json"),
            (vectors + "?model=small&model=large", b'{"model":"small"}', "application/json"),
        ):
            ran[f"{path} {body!r}"] = await ask(node, path, body, content_type)
        assert {name: told for name, (status, told) in ran.items() if status not in (400, 403)} == {}


async def test_alias_and_split_work_in_forms_as_in_json_W20(tmp_path: Path) -> None:
    rules = tmp_path / "router.toml"
    rules.write_text("[models.both]\nsplit = { large = 1 }\n")
    async with fastapi_behind_a_router(tmp_path, "--config", str(rules)) as (node, _):
        both = form(b"Content-Disposition: form-data; name=model\r\nContent-Length: 4|both")
        assert await ask(node, "/v1/audio/transcriptions", both, FORM) == (200, "large")
        assert await ask(node, "/v1/audio/transcriptions", b"model=both", "application/x-www-form-urlencoded") == (
            200,
            "large",
        )
        assert await ask(node, "/v1/embeddings?model=both", b'{"model":"both"}', "application/json") == (200, "large")


@pytest.mark.parametrize("base", ["/v1", ""])
async def test_one_model_is_an_object_and_an_unknown_one_404_for_both_clients_W9(tmp_path: Path, base: str) -> None:
    async with (
        fastapi_behind_a_router(tmp_path) as (node, _),
        openai.AsyncOpenAI(base_url=node.url + base, api_key=KEY) as gpt,
        anthropic.AsyncAnthropic(base_url=node.url, api_key=KEY) as claude,
    ):
        assert (await gpt.models.retrieve("small")).id == "small"
        with pytest.raises(openai.NotFoundError) as unknown:
            await gpt.models.retrieve("org/typo")
        assert unknown.value.code == "model_not_found"
        assert "org/typo" in unknown.value.message
        with pytest.raises(anthropic.NotFoundError) as missed:
            await claude.models.retrieve("typo")
        told: Any = missed.value.body
        assert (told["type"], told["error"]["type"]) == ("error", "not_found_error")
        async with node.http.post(f"{node.url}{base}/models/small") as answer:
            assert (answer.status, (await answer.json())["error"]["type"]) == (405, "invalid_request_error")


async def test_a_large_form_passes_while_it_arrives_and_a_late_second_model_never_runs_W1(tmp_path: Path) -> None:
    sound = b"RIFF\r\n--\x00" * 500_000
    async with fastapi_behind_a_router(tmp_path) as (node, _):
        url = f"{node.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            calls = client.audio.transcriptions.with_raw_response
            told = json.loads((await calls.create(model="small", file=("a.wav", sound))).content)
        assert told == {"ran": "small", "bytes": len(sound)}
        first = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nsmall\r\n'
        late = first + AUDIO[:-2] + sound + b"\r\n" + first.replace(b"small", b"large") + b"--b--\r\n"
        status, error = await ask(node, "/v1/audio/transcriptions", late, FORM)
        assert (status, "twice" in error["message"]) == (400, True)
