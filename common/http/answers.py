"""JSON answers as every service gives them: compact, since the ancestors' scripts look for `"id":"…"` without blanks."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

SEPARATORS = (",", ":")
"""Of compact JSON, for `json.dumps`."""


def json_answer(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A whole answer in JSON, structs of `common/wire` among it; `web.json_response` would put blanks after its commas."""
    text = json.dumps(content, separators=SEPARATORS, default=msgspec.to_builtins)
    return web.Response(text=text, status=status, headers=headers, content_type="application/json")
