"""A real llama-server with one habit changed.  odd_server.py HABIT SWITCH llama-server ARGS…

    loads      lists its model at once, and generates only once the file SWITCH exists
    stays      leaves out the end of every stream, and keeps the connection
    rubbish    tells nonsense at /metrics

It listens where ARGS say, and has the real one listen beside it.
"""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path

from aiohttp import ClientSession, web

LOADING = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
RUBBISH = (
    "<html>\nllamacpp:requests_processing lots\nllamacpp:requests_processing NaN\nllamacpp:n_decode_total -4\n\x00"
)
DONE = b"data: [DONE]\n\n"


def main(habit: str, switch: Path, command: list[str]) -> None:
    place = command.index("--port") + 1
    port = int(command[place])
    with socket.create_server(("127.0.0.1", 0)) as free:
        engine_port = free.getsockname()[1]
    command[place] = str(engine_port)

    async def handle(request: web.Request) -> web.StreamResponse:
        if habit == "loads" and request.method == "POST" and not switch.exists():
            return web.Response(status=503, text=json.dumps(LOADING), content_type="application/json")
        if habit == "rubbish" and request.path == "/metrics":
            return web.Response(text=RUBBISH)
        url, body = f"http://127.0.0.1:{engine_port}{request.path_qs}", await request.read()
        kind = {"content-type": request.content_type}
        async with ClientSession() as session, session.request(request.method, url, data=body, headers=kind) as answer:
            stream = web.StreamResponse(status=answer.status, headers={"content-type": answer.headers["content-type"]})
            await stream.prepare(request)
            async for piece in answer.content.iter_any():
                await stream.write(piece.removesuffix(DONE) if habit == "stays" else piece)
            if habit == "stays" and answer.content_type == "text/event-stream":
                await asyncio.Event().wait()
            return stream

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    with subprocess.Popen(command) as engine:
        try:
            web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)
        finally:
            engine.terminate()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
