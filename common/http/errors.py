"""Errors of the control planes: always JSON, always `{"error": …}`, never a stack (docs/contract.md 1)."""

import functools
import json
import logging
import math
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web

from common.http.answers import json_answer
from common.wire.base import JsonObject

log = structlog.get_logger(__name__)
NESTING_LIMIT = 64
LARGEST_INT = 2**63
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ApiError(Exception):
    """An answer other than success, raised anywhere below a handler.

    Args:
        status: HTTP status.
        message: For the caller; names the field and the remedy.
        fields: Further members of the body.
    """

    def __init__(self, status: int, message: str, *, headers: dict[str, str] | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}
        self.fields = fields

    def response(self) -> web.Response:
        """The JSON answer."""
        return json_answer({"error": self.message, **self.fields}, status=self.status, headers=self.headers)


@web.middleware
async def json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Render `ApiError`, aiohttp's own refusals and defects of ours as JSON."""
    answered = await render_errors(request, handler)
    tell(request, answered.status)
    return answered


def tell(request: web.Request, status: int) -> None:
    """One line per call of a control plane, for whoever set the level to debug."""
    if log.is_enabled_for(logging.DEBUG):  # the fields cost more than the line that nobody wants
        log.debug("http.answered", method=request.method, path=request.path, status=status, remote=request.remote)


async def render_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What `handler` answers, its faults as JSON."""
    try:
        return await handler(request)
    except ApiError as error:
        return error.response()
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return json_answer({"error": error.reason}, status=error.status, headers=headers)
    except Exception:
        # The one broad clause of a control plane: the defect is logged whole, the caller learns nothing of it.
        log.exception("http.handler_failed", method=request.method, path=request.path)
        return json_answer({"error": "internal error"}, status=500)


def detailed(handler: Handler) -> Handler:
    """A handler of the replica API, whose errors carry their text under `detail` as well, where old clients look."""

    @functools.wraps(handler)
    async def telling(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            error.fields.setdefault("detail", error.message)
            raise

    return telling


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is larger than any number here")
    return number


def _unique_pairs(pairs: list[tuple[str, Any]]) -> JsonObject:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key appears twice")
    return table


async def read_json_object(request: web.Request, *, empty: bool = False) -> JsonObject:
    """The request's body as a JSON object, whatever its Content-Type says (docs/contract.md 1: `curl -d` works).

    Args:
        request: The request.
        empty: True allows no body at all, which counts as `{}`.

    Raises:
        ApiError: 400 with the JSON fault.
    """
    raw = await request.read()
    return {} if empty and not raw else parse_json_object(raw)


def parse_json_object(raw: bytes) -> JsonObject:
    """A body that was read already, as a JSON object.

    Raises:
        ApiError: 400 with the JSON fault; duplicate keys, numbers that are none (NaN, 1e400), half a surrogate pair
            (nobody downstream could encode it) and nesting past Python's limit count as faults.
    """
    try:
        value = json.loads(
            raw.decode(), object_pairs_hook=_unique_pairs, parse_constant=_reject_constant, parse_float=_finite
        )
        if b"\\ud" in raw or b"\\uD" in raw:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"invalid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError(400, f"the body must be a JSON object, not {type(value).__name__}")
    return value


def check_values(body: JsonObject, *, status: int) -> None:
    """Refuse what JSON can say and our encoders or other parsers cannot (docs/faults.md G14, M13).

    Raises:
        ApiError: Of this status; a member is nested deeper than `NESTING_LIMIT`, or holds an integer beyond 64 bits.
    """
    stack: list[tuple[object, int, str]] = [(value, 1, key) for key, value in body.items()]
    while stack:
        value, depth, field = stack.pop()
        if isinstance(value, dict | list):
            if depth > NESTING_LIMIT:
                raise wrong_field(field, f"is nested deeper than {NESTING_LIMIT}", status)
            inner = value.values() if isinstance(value, dict) else value
            stack.extend((item, depth + 1, field) for item in inner)
        elif isinstance(value, int) and not -LARGEST_INT <= value < LARGEST_INT:
            raise wrong_field(field, "holds an integer beyond 64 bits", status)


def wrong_field(field: str, problem: str, status: int) -> ApiError:
    """The refusal of one member."""
    return ApiError(status, f"field {field!r}: {problem}", field=field, details=[{"field": field, "problem": problem}])
