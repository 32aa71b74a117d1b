"""The mock server's HTTP side: the OpenAI calls, and `/mock/…` to steer and observe it from a test."""

import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from babysitter.mock.answers import (
    Body,
    Generation,
    embedding,
    model_list,
    seeded_words,
    text_before,
    text_of,
    words_for,
)
from babysitter.mock.knobs import Knobs
from common.http.answers import SEPARATORS, json_answer
from common.http.errors import ApiError, read_json_object

BODY_LIMIT_BYTES = 64 << 20
TCP_REPAIR = 19
"""Linux's option (linux/tcp.h): a socket that is closed in this mode says nothing to its peer."""
LAST_BODY_LIMIT = 10_000
"""Characters of the last request's body that `/mock/state` shows."""


class MockServer:
    """What the server is and what it has seen.

    Args:
        name: Shown in answers (`system_fingerprint`, `X-Mock-Server`).
        models: Ids that it serves; a request for another is 404.
        knobs: How it behaves now; replaced whole when changed.
    """

    def __init__(self, name: str, models: list[str], knobs: Knobs) -> None:
        self.name = name
        self.models = models
        self.knobs = knobs
        self.created = int(time.time())
        self.counts: Counter[str] = Counter(requests=0, in_flight=0, held=0, finished=0, disconnects=0, chunks=0)
        self.calls: Counter[str] = Counter()
        self.last_request: Body | None = None
        self.asleep = False
        self._news = asyncio.Condition()
        self._parked: list[asyncio.Event] = []

    async def count(self, **changes: int) -> None:
        """Change counters and wake whoever waits for them."""
        self.counts.update(changes)
        async with self._news:
            self._news.notify_all()

    def state(self) -> Body:
        """What `GET /mock/state` tells."""
        about = {
            "name": self.name,
            "pid": os.getpid(),
            "models": self.models,
            "calls": dict(self.calls),
            "asleep": self.asleep,
        }
        return {**about, **self.counts, "knobs": self.knobs.model_dump(), "last_request": self.last_request}

    async def until(self, counts: dict[str, int], wait_s: float) -> None:
        """Wait until every counter in `counts` is reached (`in_flight`: exactly); 408 after `wait_s`."""

        def reached() -> bool:
            return all(
                self.counts[name] == value if name == "in_flight" else self.counts[name] >= value
                for name, value in counts.items()
            )

        async with self._news:
            try:
                await asyncio.wait_for(self._news.wait_for(reached), wait_s)
            except TimeoutError:
                raise ApiError(HTTPStatus.REQUEST_TIMEOUT, f"{counts} not reached", state=self.state()) from None

    async def park(self) -> None:
        """Hold this request until it is released."""
        gate = asyncio.Event()
        self._parked.append(gate)
        await self.count(held=1)
        try:
            await gate.wait()
        finally:
            with contextlib.suppress(ValueError):
                self._parked.remove(gate)
            await self.count(held=-1)

    def release(self, count: int | None) -> int:
        """Let `count` parked requests go (None: all), first come first; returns how many."""
        chosen = self._parked[:count]
        del self._parked[:count]
        for gate in chosen:
            gate.set()
        return len(chosen)

    @contextlib.asynccontextmanager
    async def request(self, request: web.Request, body: Body) -> AsyncIterator[None]:
        """Count one inference request from its arrival to its end, and log it with its id, as engines do."""
        self.calls[request.path] += 1
        headers = {name.lower(): value for name, value in request.headers.items()}
        if "x-request-id" in headers:
            sys.stdout.write(f"{request.method} {request.path} request_id={headers['x-request-id'][:128]}\n")
            sys.stdout.flush()
        shown = json.dumps(body)[:LAST_BODY_LIMIT]
        self.last_request = {"path": request.raw_path, "headers": headers, "body": shown}
        await self.count(requests=1, in_flight=1)
        try:
            yield
            await self.count(finished=1)
        except (asyncio.CancelledError, ConnectionResetError):
            self.counts["disconnects"] += 1
            raise
        finally:
            await self.count(in_flight=-1)


SERVER: web.AppKey[MockServer] = web.AppKey("server", MockServer)


def make_app(server: MockServer) -> web.Application:
    """The application around `server`."""
    app = web.Application(client_max_size=BODY_LIMIT_BYTES, middlewares=[_sign, _openai_errors])
    app[SERVER] = server
    for prefix in ("", "/v1"):
        app.router.add_get(f"{prefix}/models", models)
        app.router.add_post(f"{prefix}/chat/completions", generate)
        app.router.add_post(f"{prefix}/completions", generate)
        app.router.add_post(f"{prefix}/embeddings", embeddings)
    app.router.add_get("/health", health)
    app.router.add_post("/sleep", sleep)
    app.router.add_post("/wake_up", wake_up)
    app.router.add_get("/is_sleeping", is_sleeping)
    app.router.add_get("/mock/state", mock_state)
    app.router.add_post("/mock/knobs", mock_knobs)
    app.router.add_post("/mock/models", mock_models)
    app.router.add_post("/mock/release", mock_release)
    app.router.add_post("/{path:.+}", echo)
    return app


@web.middleware
async def _sign(request: web.Request, handler: Any) -> web.StreamResponse:
    """Name the server in every answer, and refuse the form of paths that the knobs rule out."""
    server = request.app[SERVER]
    is_v1 = request.path.startswith("/v1/")
    wrong = {"both": False, "v1": not is_v1, "bare": is_v1}[server.knobs.paths]
    if wrong and not request.path.startswith(("/mock/", "/health")):
        return json_answer({"error": "no such path"}, status=HTTPStatus.NOT_FOUND)
    answer: web.StreamResponse = await handler(request)
    if not answer.prepared:
        answer.headers["X-Mock-Server"] = server.name
    return answer


@web.middleware
async def _openai_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Errors in OpenAI's shape."""
    try:
        answer: web.StreamResponse = await handler(request)
    except ApiError as error:
        kind = "invalid_request_error" if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
        content = {"message": error.message, "type": kind, "param": None, "code": error.status}
        body = {"error": content, **error.fields}
        return json_answer(body, status=error.status, headers=error.headers)
    return answer


async def health(request: web.Request) -> web.Response:
    """`GET /health`."""
    server = request.app[SERVER]
    return json_answer({"status": "ok", "server": server.name}, status=server.knobs.health_status)


async def sleep(request: web.Request) -> web.Response:
    """`POST /sleep`, as vLLM's: from now on requests fail, which would end a real engine."""
    server = request.app[SERVER]
    server.calls[request.path] += 1
    server.asleep = True
    return web.Response()


async def wake_up(request: web.Request) -> web.Response:
    """`POST /wake_up`: answers when it is awake."""
    server = request.app[SERVER]
    server.calls[request.path] += 1
    await asyncio.sleep(server.knobs.wake_s)
    server.asleep = False
    return web.Response()


async def is_sleeping(request: web.Request) -> web.Response:
    """`GET /is_sleeping`."""
    return json_answer({"is_sleeping": request.app[SERVER].asleep})


async def models(request: web.Request) -> web.Response:
    """`GET /v1/models` and `/models`, as the `models_call` knob wants it."""
    server = request.app[SERVER]
    objects = model_list(server.models, server.created)
    match server.knobs.models_call:
        case "missing":
            raise web.HTTPNotFound
        case "broken":
            return web.Response(text="{not json", content_type="application/json")
        case "list":
            return json_answer(objects)
        case "empty":
            objects = []
    return json_answer({"object": "list", "data": objects})


async def generate(request: web.Request) -> web.StreamResponse:
    """`POST …/chat/completions` and `…/completions`."""
    server = request.app[SERVER]
    body = await read_json_object(request)
    async with server.request(request, body):
        await _misbehave_first(server, request, body)
        answer = _answer(server, body, chat="chat" in request.path)
        if body.get("stream"):
            options = body.get("stream_options") or {}
            return await _stream(server, request, answer, usage=bool(options.get("include_usage")))
        await asyncio.sleep(server.knobs.token_delay_s * len(answer.words))
        return await _whole(server, request, answer.whole())


async def embeddings(request: web.Request) -> web.StreamResponse:
    """`POST …/embeddings`."""
    server = request.app[SERVER]
    body = await read_json_object(request)
    async with server.request(request, body):
        await _misbehave_first(server, request, body)
        inputs = body.get("input", "")
        texts = [str(text) for text in (inputs if isinstance(inputs, list) else [inputs])]
        data = [{"object": "embedding", "index": n, "embedding": embedding(text)} for n, text in enumerate(texts)]
        count = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": count, "total_tokens": count}
        model = body.get("model", server.models[0])
        return await _whole(server, request, {"object": "list", "data": data, "model": model, "usage": usage})


async def echo(request: web.Request) -> web.StreamResponse:
    """Any other `POST` (rerank, score, tokenize …): tell what arrived."""
    server = request.app[SERVER]
    body = await read_json_object(request, empty=True)
    async with server.request(request, body):
        await _misbehave_first(server, request, body)
        content = {"object": "mock.echo", "path": request.path, "server": server.name, "body": body}
        return await _whole(server, request, content)


async def mock_state(request: web.Request) -> web.Response:
    """`GET /mock/state[?wait_s=5&requests=3&held=1&in_flight=0]`: counters, at once or when they are reached."""
    server = request.app[SERVER]
    query = dict(request.query)
    wait_s = float(query.pop("wait_s", 0))
    if query:
        await server.until({name: int(value) for name, value in query.items()}, wait_s)
    return json_answer(server.state())


async def mock_knobs(request: web.Request) -> web.Response:
    """`POST /mock/knobs`: set some knobs, leave the others."""
    server = request.app[SERVER]
    changes = await read_json_object(request)
    try:
        server.knobs = Knobs.model_validate({**server.knobs.model_dump(), **changes})
    except ValidationError as error:
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    return json_answer(server.knobs.model_dump())


async def mock_models(request: web.Request) -> web.Response:
    """`POST /mock/models {"models": [ids]}`: serve these from now on, as an engine that loads an adapter or is swapped."""
    names = (await read_json_object(request)).get("models")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "models: must be a list of names")
    request.app[SERVER].models = names
    return json_answer({"models": names})


async def mock_release(request: web.Request) -> web.Response:
    """`POST /mock/release[{"count": n}]`: let parked requests go; the `hold` knob stays as it is."""
    body = await read_json_object(request, empty=True)
    return json_answer({"released": request.app[SERVER].release(body.get("count"))})


async def _misbehave_first(server: MockServer, request: web.Request, body: Body) -> None:
    """Everything that happens before the first byte; raises `ApiError` for the answers that fail."""
    if server.asleep:
        server.calls["asleep"] += 1
        raise ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "the mock sleeps")
    if server.knobs.hold:
        await server.park()
    knobs = server.knobs
    if knobs.fail_first or (knobs.fail_word and knobs.fail_word in text_of(body)):
        server.knobs = knobs.model_copy(update={"fail_first": max(0, knobs.fail_first - 1)})
        headers = {} if knobs.retry_after_s is None else {"Retry-After": str(knobs.retry_after_s)}
        raise ApiError(knobs.fail_status, "the mock fails on request", headers=headers)
    if body.get("model", server.models[0]) not in server.models:
        raise ApiError(HTTPStatus.NOT_FOUND, f"the model {body['model']!r} does not exist")
    await asyncio.sleep(knobs.ttft_s)
    await _misbehave(server, request, 0)


async def _misbehave(server: MockServer, request: web.Request, chunks: int) -> None:
    """Die, reset or hang when `chunks` were sent and a knob says so."""
    knobs = server.knobs
    if knobs.die_after_chunks == chunks:
        os._exit(knobs.exit_code)
    if knobs.reset_after_chunks == chunks and request.transport is not None:
        linger = struct.pack("ii", 1, 0)  # without it, abort() sends a FIN
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        request.transport.abort()
        raise ConnectionResetError("the mock resets on request")
    if knobs.vanish_after_chunks == chunks and request.transport is not None:
        request.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        request.transport.abort()
        raise ConnectionResetError("the mock vanishes on request")
    if knobs.hang_after_chunks == chunks:
        await asyncio.Event().wait()


def _answer(server: MockServer, body: Body, *, chat: bool) -> Generation:
    model = str(body.get("model", server.models[0]))
    prompt = text_of(body)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    count = server.knobs.tokens if limit is None else int(limit)
    if server.knobs.seeded:
        before = text_before(body, chat=chat)
        words, ended = seeded_words(before, None if limit is None else int(limit))
    else:
        before, words, ended = prompt, words_for(model, prompt, count), limit is None
    return Generation(
        identity=f"{'chatcmpl' if chat else 'cmpl'}-{server.name}-{server.counts['requests']}",
        created=int(time.time()),
        model=model,
        server=server.name,
        words=words,
        finish_reason="stop" if ended else "length",
        prompt_tokens=len(before.split()),
        chat=chat,
    )


async def _stream(server: MockServer, request: web.Request, answer: Generation, *, usage: bool) -> web.StreamResponse:
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Mock-Server": server.name}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    for sent, chunk in enumerate(answer.chunks(usage=usage), start=1):
        await response.write(b"data: " + json.dumps(chunk, separators=SEPARATORS).encode() + b"\n\n")
        server.counts["chunks"] += 1
        await _misbehave(server, request, sent)
        if server.knobs.token_delay_s:
            await asyncio.sleep(server.knobs.token_delay_s)
    if not server.knobs.close_without_done:
        await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def _whole(server: MockServer, request: web.Request, content: Body) -> web.StreamResponse:
    """A whole answer in two writes, so that it can break in the middle."""
    raw = json.dumps(content, separators=SEPARATORS).encode()
    headers = {"Content-Type": "application/json", "X-Mock-Server": server.name}
    response = web.StreamResponse(headers=headers)
    response.content_length = len(raw) + server.knobs.wrong_length
    await response.prepare(request)
    half = len(raw) // 2
    await response.write(raw[:half])
    await _misbehave(server, request, 1)
    await response.write(raw[half:])
    if server.knobs.wrong_length and request.transport is not None:
        request.transport.close()  # a short body ends with its connection, or the next answer would be taken for it
    await response.write_eof()
    return response
