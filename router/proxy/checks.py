"""The checks that a request passes before it is routed: its path, method, key and body; and what routing learns from it."""

import re
from binascii import hexlify
from math import ceil
from random import getrandbits
from typing import Final

from common.wire.leases import IN_FLIGHT, REQUESTS, TOKENS
from router import urlencoded
from router.admission import PRIORITIES, Priority
from router.dispatch import LocalAnswer
from router.facts import BadBody, PolicyNeeds, checked_model, forwarded_affinity, read_json, with_model, with_usage
from router.form import read_multipart, with_part
from router.keys import Key, Refusal
from router.model import Endpoint, Facts
from router.policy.models import POLICIES
from router.policy.parameters import NoObject, Parameters
from router.proxy.engine import Engine
from router.proxy.head import RequestHead
from router.proxy.paths import ADMIN_TREES, PROXIED, EndMark, Operation, is_control, loads_adapters, steers_engine
from router.proxy.spelling import nearest
from router.purses import Account, Purse

Headers = tuple[tuple[bytes, bytes], ...]
OPEN_PATHS = frozenset({b"/", b"/health", b"/ready", b"/status"})
"""Answered to anybody: a load balancer holds no key."""
_JSON_OBJECT = re.compile(rb"[ \t\r\n]*\{")
_SECONDS = re.compile(rb"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_REQUEST_ID_LIMIT: Final = 128
_POLICY: Final = b"x-routing-policy"
_REFUSALS = {
    Refusal.UNKNOWN: (401, "a valid API key is needed"),
    Refusal.MODEL: (403, "this API key may not use this model"),
    Refusal.ADMIN: (403, "this API key is no administrator's"),
}


_USED_UP = {
    REQUESTS: "this API key has used up its requests for now",
    TOKENS: "this API key has used up its tokens for now",
    IN_FLIGHT: "this API key has as many requests under way as it may",
}
LIMITS_UNKNOWN = LocalAnswer(
    503,
    "limits_unknown",
    "nobody can tell now what is left of this API key's limits",
    (b"retry-after", b"2"),
)


def request_id_of(head: RequestHead) -> bytes:
    """The client's id if it is printable and short, else a new one."""
    value = head.request_id
    if value and len(value) <= _REQUEST_ID_LIMIT and value.isascii() and value.decode().isprintable():
        return value
    return hexlify(getrandbits(64).to_bytes(8, "big"))


class Rejected(Exception):
    """The request is answered by the router itself."""

    def __init__(self, status: int, code: str, message: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.answer = LocalAnswer(status, code, message, *headers)


def reject(why: Refusal) -> Rejected:
    """The answer to a request that its key does not cover."""
    status, message = _REFUSALS[why]
    headers: Headers = ()
    if why is Refusal.UNKNOWN:
        headers = ((b"www-authenticate", b"Bearer"),)
    return Rejected(status, why.value, message, *headers)


def out_of_budget(account: Account, lacking: Purse, now: float) -> LocalAnswer:
    """The answer to a request whose key has used up a limit, with the fields by which OpenAI tells it."""
    fields = [line.partition(b": ") for line in account.header_lines(now).split(b"\r\n") if line]
    headers = [(name, value) for name, _, value in fields]
    headers.append((b"retry-after", b"%d" % max(1, ceil(lacking.none_until - now))))
    return LocalAnswer(429, "rate_limited", _USED_UP[account.name_of(lacking)], *headers)


def key_of(engine: Engine, head: RequestHead) -> Key | None:
    """The key that a request shows; None for a path open to anybody. Only for a router that has keys.

    Raises:
        Rejected: It shows none of ours, or one that may not do this.
    """
    if head.path in OPEN_PATHS:
        return None
    key = engine.keys.find(head.authorization, head.api_key)
    if key is None:
        raise reject(Refusal.UNKNOWN)
    if head.path.startswith(ADMIN_TREES) and not key.admin:
        raise reject(Refusal.ADMIN)
    return key


def check_path(engine: Engine, head: RequestHead, operation: Operation | None) -> bool:
    """True for the control plane's paths, False for a replica's.

    Raises:
        Rejected: The router serves no such path, or not by this method.
    """
    if operation is not None:
        if head.method not in operation.methods:
            allowed = b", ".join(operation.methods)
            raise Rejected(405, "method_not_allowed", f"this path takes {allowed.decode()}", (b"allow", allowed))
        return False
    if is_control(head.path) and head.path.removeprefix(b"/api") not in PROXIED:
        return True
    limits = engine.limits
    if not limits.any_path and head.path not in limits.extra_paths:
        nearest_path = nearest(head.path)
        hint = f"; the nearest is {nearest_path}" if nearest_path is not None else ""
        raise Rejected(404, "unknown_path", f"the router serves no such path{hint}")
    if loads_adapters(head.path):
        raise Rejected(404, "unknown_path", "adapters are loaded at their babysitter: svcctl lora load REPLICA NAME")
    if steers_engine(head.path):
        raise Rejected(404, "unknown_path", "engines sleep and wake by their babysitter: svcctl replicas sleep REPLICA")
    return False


def facts_of(engine: Engine, head: RequestHead, body: bytes, operation: Operation | None) -> Facts:
    """What routing needs to know of the request.

    Raises:
        Rejected: The body cannot be read.
    """
    forwarded = forwarded_affinity(head.forwarded_for, head.user_agent) if head.forwarded_for else None
    try:
        if (operation is None and (not body or head.method != b"POST")) or names_response(operation):
            return Facts(affinity=forwarded)
        return _agreed(head, _read(engine, head, body, forwarded))
    except BadBody as error:
        if operation is None:
            return Facts(affinity=forwarded)  # a path that we know nothing of: its body is the replica's to judge
        raise Rejected(400, "invalid_body", str(error)) from error


def deadlines_of(head: RequestHead) -> dict[bytes, float]:
    """The seconds that the client has, by the field that says so.

    Raises:
        Rejected: One of them is no time. Passed over, it would be found out by an answer that comes too late.
    """
    deadlines: dict[bytes, float] = {}
    for name, value in head.deadlines:
        seconds = float(value) if _SECONDS.fullmatch(value) else 0.0
        if not seconds or name in deadlines:
            told = f"{name.decode()} must be there once, as seconds above 0, such as 30 or 2.5"
            raise Rejected(400, "invalid_timeout", told)
        deadlines[name] = seconds
    return deadlines


def names_response(operation: Operation | None) -> bool:
    """True for a path of a stored response."""
    return operation is not None and operation.response is not None


def response_of(operation: Operation | None, facts: Facts) -> str | None:
    """The stored response that a request is about: its path names it, or it goes on from there."""
    if operation is None or operation.plain:
        return None
    return operation.response or (facts.previous_response if operation.end_mark is EndMark.RESPONSES else None)


def _read(engine: Engine, head: RequestHead, body: bytes, forwarded: str | None) -> Facts:
    """What the body says, in whichever of its types."""
    if head.is_multipart:
        return read_multipart(head.content_type or b"", body, forwarded=forwarded, whole=not head.is_streamed)
    if head.is_urlencoded and not is_json(head, body):
        models = _models_of_fields(body)
        return Facts(model=checked_model(*models) if models else None, affinity=forwarded)
    wants_text = engine.needs.text_length
    facts = read_json(body, want_text=wants_text, forwarded=forwarded, needs=policy_needs(engine, head))
    if head.is_urlencoded and _models_of_fields(body) - {facts.model}:
        raise BadBody("read as fields, the body names another 'model'; send Content-Type: application/json")
    return facts


def is_json(head: RequestHead, body: bytes) -> bool:
    """False for a form of either kind."""
    return not head.is_multipart and (not head.is_urlencoded or _JSON_OBJECT.match(body) is not None)


def _agreed(head: RequestHead, facts: Facts) -> Facts:
    """`facts` of the body, which the query may repeat and not contradict: some servers read the one, some the other."""
    if head.query_models and head.query_models != {facts.model}:
        raise BadBody("the query names another 'model' than the body")
    return facts


def _models_of_fields(body: bytes) -> frozenset[str]:
    """The model of a urlencoded body, if it names one; it may name one only."""
    try:
        models = urlencoded.models_in(body)
    except ValueError as error:
        raise BadBody(f"the fields cannot be read; of JSON say Content-Type: application/json ({error})") from error
    if len(models) > 1:
        raise BadBody("'model' appears twice in the form")
    return models


def renamed(head: RequestHead, body: bytes, model: str) -> tuple[RequestHead, bytes]:
    """The same request for another model: what named the first names this one.

    Raises:
        BadBody: It cannot be read; not after `facts_of` could.
    """
    if head.query_models:
        head = head.copied()
        head.query = urlencoded.with_model(head.query, model)
        head.query_models = frozenset({model})
    if head.is_multipart:
        return head, with_part(head.content_type or b"", body, model)
    if not is_json(head, body):
        return head, urlencoded.with_model(body, model)
    return head, with_model(body, model)


def follow_rules(
    engine: Engine,
    head: RequestHead,
    body: bytes,
    facts: Facts,
    operation: Operation | None,
    *,
    owner: Endpoint | None = None,
) -> tuple[RequestHead, bytes, Facts]:
    """The request for the model that its model's name leads to (an alias's part, or a fallback), with both names' parameters.

    `owner`: the one replica that can answer; the name leads to a model of its.

    Raises:
        Rejected: A parameter is forced into what is no object.
    """
    model, key = facts.model, facts.affinity
    if model is None:
        return head, body, facts
    if key is not None and not key.startswith("key:"):
        key = None  # an address may be everybody's behind a proxy: all of them would be one part's
    rules = engine.chooser.rules
    is_ready = engine.is_ready if owner is None else frozenset(owner.models).__contains__
    target = engine.chooser.resolve(model, key, is_ready)
    before = body
    if target != model:
        head, body = renamed(head, body, target)
    if rules.has_parameters and operation is not None and operation.by_engine and is_json(head, body):
        body = _with_parameters(body, rules.find(model).parameters)
        if target != model:
            body = _with_parameters(body, rules.find(target).parameters)
    return head, body, facts if body is before else facts_of(engine, head, body, operation)


def asking_usage(engine: Engine, head: RequestHead, body: bytes, facts: Facts) -> bytes | None:
    """The body that asks for its stream's usage as well, where the model's rule wants that; None where it stays as it is."""
    operation = head.operation
    if not facts.stream or facts.model is None or operation is None or operation.end_mark is not EndMark.DONE:
        return None
    return with_usage(body) if engine.chooser.rules.find(facts.model).ask_usage and is_json(head, body) else None


def _with_parameters(body: bytes, parameters: Parameters | None) -> bytes:
    if parameters is None:
        return body
    try:
        return parameters.apply(body)
    except NoObject as error:
        raise Rejected(400, "invalid_body", str(error)) from error


def policy_needs(engine: Engine, head: RequestHead) -> PolicyNeeds | None:
    """What policies need of the request beside its model; None if nothing.

    Raises:
        Rejected: It asks for a policy that does not exist.
    """
    needs = engine.needs.policies
    if needs is None or not engine.needs.headers:
        return needs
    policy = session = None
    for name, value in head.fields:
        if name == _POLICY and engine.limits.allow_policy_header:
            policy = value.decode("latin-1")
            if policy not in POLICIES:
                raise Rejected(400, "unknown_policy", f"X-Routing-Policy must be one of {', '.join(POLICIES)}")
        elif name == engine.limits.session_header:
            session = value.decode("latin-1")
    return needs._replace(policy=policy, session=session)


def priority_of(head: RequestHead, granted: Priority) -> Priority:
    """How urgent a request is: what its key grants, or less if it says so itself (X-Priority)."""
    for name, value in head.fields:
        if name == b"x-priority":
            return max(granted, PRIORITIES.get(value.decode("latin-1").lower(), granted))
    return granted
