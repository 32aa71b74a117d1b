"""That every call of a service's table that changes something leaves a line, so that a new one cannot be forgotten."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.http.openapi import Route

READING = ("GET", "HEAD", "OPTIONS")


def lines(path: Path) -> list[dict[str, Any]]:
    """What stands in an audit file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def check_table(
    client: Any, path: Path, routes: Iterable[Route], no_change: Mapping[tuple[str, str], str], **headers: str
) -> None:
    """Call everything that is no question, with names that nothing has, and compare what was written."""
    asked = [(route.method, route.path) for route in routes if route.method not in READING]
    assert set(no_change) <= set(asked), "what is excepted is there"
    wanted = []
    for method, pattern in asked:
        called = re.sub(r"\{[^}]*\}", "xxxxxxxxxxxx", pattern)
        async with client.request(method, called, json={}, headers=headers) as answer:
            assert answer.status != 405
            if (method, pattern) not in no_change:
                wanted.append((method, called, answer.status))
    found = [(line["method"], line["path"], line["status"]) for line in lines(path)]
    assert found == wanted
