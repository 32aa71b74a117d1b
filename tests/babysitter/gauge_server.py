"""An engine that tells how many requests it has, as llama.cpp does with `--metrics`: `gauge_server.py PORT`.

`POST /v1/completions` answers at once; `{"stream": true}` begins an answer, `{"slow": true}` does not: both end when the file
`go` exists in its folder.
"""

import asyncio
import sys
from pathlib import Path

from aiohttp import web

GO = Path("go")


class Engine:
    """Its requests."""

    def __init__(self) -> None:
        self.running = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer, at once or when the file is there."""
        wanted = await request.json()
        answer = web.StreamResponse()
        self.running += 1
        try:
            if wanted.get("stream"):
                await answer.prepare(request)
                await answer.write(b"first ")
            while (wanted.get("stream") or wanted.get("slow")) and not GO.exists():
                await asyncio.sleep(0.02)
            await answer.prepare(request)
            await answer.write(b"last")
        finally:
            self.running -= 1
        await answer.write_eof()
        return answer

    async def models(self, _request: web.Request) -> web.Response:
        """The one that it has."""
        return web.json_response({"object": "list", "data": [{"id": "m"}]})

    async def metrics(self, _request: web.Request) -> web.Response:
        """How much it has to do."""
        return web.Response(text=f"llamacpp:requests_processing {self.running}\nllamacpp:requests_deferred 0\n")


def main() -> None:
    """Serve until a signal comes, which ends it at once."""
    engine, app = Engine(), web.Application()
    app.router.add_post("/v1/completions", engine.complete)
    app.router.add_get("/v1/models", engine.models)
    app.router.add_get("/metrics", engine.metrics)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), shutdown_timeout=0.1, print=lambda *_: None)


if __name__ == "__main__":
    main()
