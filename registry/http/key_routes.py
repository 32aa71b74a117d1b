"""The table of calls about API keys."""

from common.http.openapi import Parameter, Route
from common.wire.keys import KeyInfo, KeyList, KeySettings, KeyWithSecret, NewKey, RotateCall, RouterKeys
from common.wire.leases import LeaseAnswer, LeaseCall
from registry.http import keys

_ONE = "/api/v1/keys/{name}"
_WRITE = (400, 404, 413, 422, 507)

KEY_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/keys",
        keys.follow,
        "All keys for a router, without secrets; with its version, once they are others.",
        {200: RouterKeys},
        (400,),
        query=(
            Parameter("version", {"type": "string"}, "The version that the caller has."),
            Parameter("wait", {"type": "integer", "minimum": 0, "maximum": 60}, "Seconds to wait for another one."),
        ),
    ),
    Route(
        "POST",
        "/v1/routers/{name}/leases",
        keys.lease,
        "What a router's workers hold and used of keys' limits; answers what they are granted.",
        {200: LeaseAnswer},
        (400, 413, 421, 422),
        body=LeaseCall,
    ),
    Route("GET", "/api/v1/keys", keys.list_keys, "Every API key, without secrets.", {200: KeyList}),
    Route(
        "POST",
        "/api/v1/keys",
        keys.create,
        "Make a key; only this answer has its secret.",
        {201: KeyWithSecret},
        (409, *_WRITE),
        body=NewKey,
    ),
    Route("GET", _ONE, keys.get_key, "One API key.", {200: KeyInfo}, (404,)),
    Route(
        "PATCH",
        _ONE,
        keys.change,
        "Change the members that are there; null takes a limit away.",
        {200: KeyInfo},
        _WRITE,
        body=KeySettings,
    ),
    Route("DELETE", _ONE, keys.revoke, "Revoke a key for good.", {200: KeyInfo}, _WRITE),
    Route(
        "POST",
        f"{_ONE}/rotate",
        keys.rotate,
        "Another secret, in this answer only; the old one is taken for a grace.",
        {200: KeyWithSecret},
        _WRITE,
        body=RotateCall,
        body_required=False,
    ),
)
