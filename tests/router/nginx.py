"""A real nginx, of Debian's package, in front of one port."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.router.peers import Debian
from tests.ports import free_port, is_free

CONFIG = """\
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  {http}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{backend}; {location} }}
  }}
}}
"""


@asynccontextmanager
async def nginx(folder: Path, backend: int, *, http: str = "", location: str = "") -> AsyncIterator[int]:
    """The port that it listens at, with more directives for all of it and for its one location."""
    port, config = free_port(), folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port, backend=backend, http=http, location=location))
    program = await asyncio.to_thread(Debian("nginx", "nginx.conf", ["nginx"], []).prepare, folder, install=True)
    process = await asyncio.create_subprocess_exec(program, "-c", str(config), stderr=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(30):
            while is_free(port):
                await asyncio.sleep(0.05)
        yield port
    finally:
        process.terminate()
        await process.wait()
