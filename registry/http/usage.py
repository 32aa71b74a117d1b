"""Tokens for people: routers tell of them, and everybody with a read token may ask (docs/usage.md)."""

import re
from collections.abc import Mapping
from math import ceil

import msgspec
from aiohttp import web

from common.http.errors import ApiError, read_json_object
from common.http.openapi import Parameter, Route
from common.names import is_service_name
from common.tokens import HOUR_S
from common.wire.usage import UsageBatch, UsageReport, UsageTaken
from registry.http.context import REGISTRY, answer
from registry.usage import pages
from registry.usage.book import ROWS_SHOWN_MOST, TooManyRows
from registry.usage.pages import DAY_HOURS, DIMENSIONS, STEPS, Question

DEFAULT_HOURS = 7 * DAY_HOURS
LONGEST_DAYS = 4000
_EPOCH_S = re.compile(r"[0-9]{1,11}(\.[0-9]{1,6})?")


async def tell(request: web.Request) -> web.Response:
    """`POST /v1/routers/{name}/usage`."""
    name = request.match_info["name"]
    if not is_service_name(name):
        raise ApiError(422, "name: must be 1 to 128 of A-Z a-z 0-9 . _ - and begin with a letter or a digit")
    try:
        batch = msgspec.convert(await read_json_object(request), UsageBatch)
    except msgspec.ValidationError as error:
        raise ApiError(422, str(error)) from error
    return answer(await request.app[REGISTRY].usage.take(name, batch))


async def report(request: web.Request) -> web.Response:
    """`GET /api/v1/usage`."""
    book, query = request.app[REGISTRY].usage, request.query
    by = [part for part in query.get("by", "key,model").split(",") if part]
    if not set(by) <= set(DIMENSIONS):
        raise ApiError(400, f"parameter 'by' must be some of {','.join(DIMENSIONS)}", field="by")
    step = query.get("step") or None
    if step is not None and step not in STEPS:
        raise ApiError(400, f"parameter 'step' must be one of {', '.join(STEPS)}", field="step")
    until = min(ceil(_hours(query, "until", book.hour + 1)), book.hour + 2)
    since = int(_hours(query, "since", until - DEFAULT_HOURS))
    if until - since > LONGEST_DAYS * DAY_HOURS:
        since = until - LONGEST_DAYS * DAY_HOURS
    try:
        found = await book.answer(Question(max(0, since), until, by, step, query.get("key")))
    except TooManyRows as error:
        told = f"more than {ROWS_SHOWN_MOST} rows: ask for less by 'since', 'by', 'step' or 'key'"
        raise ApiError(400, told, field="since") from error
    shown = UsageReport(
        since=pages.iso(pages.stamp(found.question.since)),
        until=pages.iso(pages.stamp(until)),
        rows=found.lines(),
        total=found.total(),
    )
    return answer(shown, headers={"Cache-Control": "no-store"})


def _hours(query: Mapping[str, str], name: str, default: float) -> float:
    text = query.get(name)
    if text is None:
        return default
    if _EPOCH_S.fullmatch(text) is None:
        raise ApiError(400, f"parameter {name!r} must be epoch seconds", field=name)
    return float(text) / HOUR_S


_SECONDS = {"type": "string", "pattern": "^[0-9]{1,11}(\\.[0-9]{1,6})?$"}
USAGE_ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/routers/{name}/usage",
        tell,
        "What a router counted of one hour; a batch that is sent again counts once.",
        {200: UsageTaken},
        (400, 413, 422, 507),
        body=UsageBatch,
    ),
    Route(
        "GET",
        "/api/v1/usage",
        report,
        "Requests and tokens, by key, model and replica, by hours or days.",
        {200: UsageReport},
        (400,),
        query=(
            Parameter("by", {"type": "string"}, "Some of key, model, replica, with commas; key,model unless said."),
            Parameter("since", _SECONDS, "From this hour on, in epoch seconds; a week ago unless said."),
            Parameter("until", _SECONDS, "Up to this hour, in epoch seconds; now unless said."),
            Parameter("step", {"enum": [*STEPS]}, "A row for each hour or day; without it one for all of the time."),
            Parameter("key", {"type": "string"}, "Only of this key; empty: of who showed none."),
        ),
    ),
)
