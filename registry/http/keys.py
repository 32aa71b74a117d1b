"""API keys over HTTP (docs/keys.md): made, shown, changed and revoked with an admin token; followed by routers."""

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import TypeVar

import msgspec
from aiohttp import web

from common.http.errors import ApiError, check_values, read_json_object
from common.wire.base import JsonObject
from common.wire.keys import KeyList, KeyRecord, KeySettings, NewKey, RotateCall
from common.wire.leases import LeaseCall
from registry.http.context import GRANT, REGISTRY, Registry, answer
from registry.http.deployments import NAME
from registry.http.guard import EVERYTHING, Level
from registry.keys import model
from registry.keys.lender import NotLending

WAIT_MOST_S = 60.0
Call = TypeVar("Call", NewKey, RotateCall, LeaseCall)


async def list_keys(request: web.Request) -> web.Response:
    """`GET /api/v1/keys`."""
    keys = (await _book_of(request).keys.read()).values()
    return answer(KeyList(total=len(keys), keys=[model.shown(key) for key in keys]))


async def get_key(request: web.Request) -> web.Response:
    """`GET /api/v1/keys/{name}`."""
    keys = await _book_of(request).keys.read()
    return answer(model.shown(_there(keys.get(request.match_info["name"]), request.match_info["name"])))


async def create(request: web.Request) -> web.Response:
    """`POST /api/v1/keys`: the answer is the only one that ever has the secret."""
    registry = _book_of(request)
    asked = _read(NewKey, await _members(request))
    if NAME.fullmatch(asked.name) is None:
        raise _bad("name", "must be 1 to 63 of A-Z a-z 0-9 . _ - and begin with a letter or a digit")
    now = registry.clock.utcnow()
    if asked.expires_at is not None and asked.expires_at <= now:
        raise _bad("expires_at", "lies in the past")
    secret = model.secret_of(secrets.token_bytes(model.SECRET_BYTES))

    def make(before: KeyRecord | None) -> KeyRecord:
        if before is not None:
            raise ApiError(409, f"key {asked.name!r} exists; rotate it for a new secret, or revoke it first")
        return model.created(asked, secret, now)

    made = _there(await registry.keys.change(asked.name, make), asked.name)
    return answer(model.with_secret(made, secret), status=201, headers={"Cache-Control": "no-store"})


async def change(request: web.Request) -> web.Response:
    """`PATCH /api/v1/keys/{name}`: the members that are there; null takes one away."""
    registry, name = _book_of(request), request.match_info["name"]
    body = await _members(request, nulls=True)

    def apply(before: KeyRecord | None) -> KeyRecord:
        try:
            return model.changed(_there(before, name), body)
        except msgspec.ValidationError as error:
            raise _refused(error) from error

    return answer(model.shown(_there(await registry.keys.change(name, apply), name)))


async def rotate(request: web.Request) -> web.Response:
    """`POST /api/v1/keys/{name}/rotate`: another secret, shown once; the old one is taken for a grace."""
    registry, name = _book_of(request), request.match_info["name"]
    grace_s = _read(RotateCall, await _members(request)).grace_s
    now, secret = registry.clock.utcnow(), model.secret_of(secrets.token_bytes(model.SECRET_BYTES))
    made = await registry.keys.change(name, lambda one: model.rotated(_there(one, name), secret, grace_s, now))
    return answer(model.with_secret(_there(made, name), secret), headers={"Cache-Control": "no-store"})


async def revoke(request: web.Request) -> web.Response:
    """`DELETE /api/v1/keys/{name}`: for good; the answer shows what it was."""
    registry, name = _book_of(request), request.match_info["name"]
    gone: list[KeyRecord] = []

    def remove(before: KeyRecord | None) -> None:
        gone[:] = [_there(before, name)]

    await registry.keys.change(name, remove)
    return answer(model.shown(gone[0]))


async def follow(request: web.Request) -> web.Response:
    """`GET /v1/keys[?version=V&wait=S]`: all keys; with the version that the caller has, once it is another one."""
    registry = request.app[REGISTRY]
    wait_s, book = _wait_s(request.query.get("wait", "0")), registry.keys
    if not book.known:
        raise ApiError(503, "the keys have not been read yet", headers={"Retry-After": "1"})
    if book.all.version == request.query.get("version") and wait_s and not book.closed:
        if registry.waiting_for_keys >= registry.hub.limit:
            raise ApiError(503, "too many wait for a change of the keys", headers={"Retry-After": "5"})
        registry.waiting_for_keys += 1
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(book.changed.wait(), wait_s)
        finally:
            registry.waiting_for_keys -= 1
    return answer(book.all, headers={"Cache-Control": "no-store"})


async def lease(request: web.Request) -> web.Response:
    """`POST /v1/routers/{name}/leases`: what a router's workers hold and used; the registry that leads grants them more."""
    call = _read(LeaseCall, await _members(request))
    registry = request.app[REGISTRY]
    if not registry.lender.knows(call):
        await registry.keys.look()  # another registry may have made one just now
    try:
        return answer(registry.lender.answer(call))
    except NotLending as error:
        raise ApiError(421, str(error)) from error


# What they have in common.


def _book_of(request: web.Request) -> Registry:
    """The registry, for somebody with an admin token: who may make keys for himself may use every model."""
    request.get(GRANT, EVERYTHING).check(Level.ADMIN, None)
    return request.app[REGISTRY]


def _there(key: KeyRecord | None, name: str) -> KeyRecord:
    if key is None:
        raise ApiError(404, f"key {name[:64]!r} not found")
    return key


async def _members(request: web.Request, *, nulls: bool = False) -> JsonObject:
    """The body's members; where null means nothing of its own, it means that the member is absent."""
    body = await read_json_object(request, empty=True)
    check_values(body, status=422)
    return body if nulls else {name: value for name, value in body.items() if value is not None}


def _read(kind: type[Call], body: Mapping[str, object]) -> Call:
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise _refused(error) from error


def _refused(error: msgspec.ValidationError) -> ApiError:
    """A member that cannot be what it should."""
    text, _, place = str(error).partition(" - at `$.")
    field = place.strip("`").partition("[")[0]
    text = text[:1].lower() + text[1:]
    if "unknown field" in text:
        text += f"; a key has: {', '.join(('name', *KeySettings.__struct_fields__))}"
    return _bad(field, text) if field else ApiError(422, text)


def _bad(field: str, problem: str) -> ApiError:
    return ApiError(422, f"field {field!r}: {problem}", field=field)


def _wait_s(text: str) -> float:
    if not text.isascii() or not text.isdigit() or float(text) > WAIT_MOST_S:
        raise ApiError(400, f"parameter 'wait' must be whole seconds, at most {WAIT_MOST_S:g}", field="wait")
    return float(text)
