"""JSON answers as every service gives them: compact, since the ancestors' scripts look for `"id":"…"` without blanks."""

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

SEPARATORS = (",", ":")
"""Of compact JSON, for `json.dumps`."""


def json_answer(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A whole answer in JSON; `web.json_response` would put blanks after its commas and colons."""
    text = json.dumps(content, separators=SEPARATORS)
    return web.Response(text=text, status=status, headers=headers, content_type="application/json")
