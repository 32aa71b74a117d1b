"""Everything that crosses a process border is said by somebody and heard by somebody, or it is known why not."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest
from pydantic import BaseModel

import common.wire
from babysitter.agent.requests import NOT_CARRIED_OUT
from common.wire import create
from common.wire.base import Message

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("common", "registry", "router", "babysitter", "ctl", "script")
ANCESTORS = "clients and scripts of the ancestors read it (docs/contract.md)"
OPERATORS = "operators read it with curl; no program of ours needs it"
GLANCE = "clients write it; the registry only glances at a request that it passes on"
IGNORED: dict[str, str] = {
    "BabysitterHealth.infinilm_server_running": ANCESTORS,
    "BabysitterHealth.infinilm_server_port": ANCESTORS,
    "BabysitterInfo.service_type": ANCESTORS,
    "BabysitterInfo.infinilm_server_port": ANCESTORS,
    "BabysitterInfo.uptime": ANCESTORS,
    "RegistryStats.*": ANCESTORS,
    "RouterStats.total_services": ANCESTORS,
    "RoutedService.request_count": ANCESTORS,
    "RoutedService.error_count": ANCESTORS,
    "RoutedService.response_time": ANCESTORS,
    "TrafficPoint.retries_s": OPERATORS,
    "TrafficPoint.queue_s": OPERATORS,
    "ErrorBody.field": "an ApiError has its further members as keywords (common/http/errors.py)",
    "ErrorBody.details": "as ErrorBody.field",
    "ErrorBody.upstream_status": "as ErrorBody.field",
    "ErrorBody.code": "as ErrorBody.field; the registry reads it of an agent",
    "FieldFault.*": "as ErrorBody.field: pydantic's findings, made into plain tables",
    "Heartbeat.*": "ReplicaHeartbeat and AgentReport are sent, and ancestors' bodies; the registry reads these members first",
    "Hints.*": "operators write it under [metadata], ancestors' babysitters in their records; ours in babysitter/records.py",
    "ReportHints.*": "a part of ReplicaReport, as routers read it",
    "ReplicaReport.models_list": "routers read it as ReportHints.models_list; babysitter/records.py adds it to the members",
    "ReplicaHeartbeat.replica_status": "babysitter/records.py and registry/core/report.py swap it with status in the text",
    "InfoMarks.service": "registry/fleet/replicas.py writes it; people read it to know which record speaks",
    "InfoMarks.hostname": "as InfoMarks.service",
    "JobLedger.*": "babysitter/run_meta.py's Ledger is one, and fills it job by job",
    "KeySettings.*": "svcctl's flags are these members (ctl/commands/keys.py)",
    "KeyInfo.name": "registry/keys/model.py takes it over from NewKey",
    "NewKey.name": "as KeySettings",
    "Peer.*": "made by position, name and url",
    "RequestGlance.*": GLANCE,
    "PlacementGlance.*": GLANCE,
    "ServiceAnswer.*": "registry/views/render.py writes the bytes; one encoding per change serves all who ask",
    "ServiceList.*": "as ServiceAnswer",
    "ServiceRecord.last_heartbeat": "as ServiceAnswer: the one member that moves between changes",
}
"""`Struct.member` → why nobody of ours produces or consumes it. One reason may stand for a struct: `Struct.*`."""


def structs() -> list[type[Message]]:
    """Every message of common/wire, by name."""
    for module in pkgutil.iter_modules(common.wire.__path__):
        importlib.import_module(f"common.wire.{module.name}")
    found: dict[str, type[Message]] = {}
    waiting = [Message]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind is not Message and kind.__module__.startswith("common.wire."):
            found[kind.__name__] = kind
    return [found[name] for name in sorted(found)]


@cache
def product() -> list[ast.Module]:
    """The product's modules but for the wire itself."""
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    return [ast.parse(file.read_text()) for file in files if file.parent != ROOT / "common" / "wire"]


@cache
def page() -> str:
    """The page in the browser, which reads answers as JavaScript does."""
    return (ROOT / "registry" / "ui" / "page.html").read_text()


@cache
def keywords() -> dict[str, set[str]]:
    """Keyword arguments of every call, by the name of what is called; `replace` and `fields` are called for any struct."""
    calls: dict[str, set[str]] = {}
    for tree in product():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                calls.setdefault(called, set()).update(word.arg for word in node.keywords if word.arg)
    return calls


@cache
def attributes() -> set[str]:
    """Names that some module reads as an attribute."""
    return {
        node.attr
        for tree in product()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def family(kind: type[Message]) -> Iterator[type[Message]]:
    """The struct, those it extends, and those that extend it: a member may be filled in as any of them."""
    yield from (base for base in kind.__mro__ if issubclass(base, Message) and base is not Message)
    waiting = list(kind.__subclasses__())
    while waiting:
        below = waiting.pop()
        waiting += below.__subclasses__()
        yield below


def members() -> list[tuple[type[Message], str]]:
    """Every member of every struct, at the struct that declares it."""
    return [
        (kind, name)
        for kind in structs()
        for name in kind.__struct_fields__
        if not any(name in getattr(base, "__struct_fields__", ()) for base in kind.__bases__)
    ]


def is_produced(kind: type[Message], name: str) -> bool:
    """Somebody fills it in, or makes the struct and means its default: a word that is always the same."""
    made = [one for one in family(kind) if one.__name__ in keywords()]
    field = next(it for it in msgspec.structs.fields(kind) if it.name == name)
    if made and isinstance(field.default, str) and field.default:
        return True
    return name in keywords().get("replace", set()).union(*(keywords()[one.__name__] for one in made))


def is_consumed(kind: type[Message], name: str) -> bool:
    on_the_wire = next(it.encode_name for it in msgspec.structs.fields(kind) if it.name == name)
    return name in attributes() or f".{on_the_wire}" in page()


def is_ignored(kind: type[Message], name: str) -> bool:
    return f"{kind.__name__}.{name}" in IGNORED or f"{kind.__name__}.*" in IGNORED


def test_every_member_has_a_producer_and_a_consumer_or_a_reason() -> None:
    faults = [
        f"{kind.__name__}.{name}: nobody {what} it"
        for kind, name in members()
        if not is_ignored(kind, name)
        for what, holds in (("produces", is_produced), ("consumes", is_consumed))
        if not holds(kind, name)
    ]
    assert faults == []


@pytest.mark.parametrize("entry", IGNORED)
def test_what_is_ignored_exists_and_has_a_reason(entry: str) -> None:
    struct, _, member = entry.partition(".")
    kinds = {kind.__name__: kind for kind in structs()}
    assert struct in kinds
    assert member == "*" or member in kinds[struct].__struct_fields__
    assert len(IGNORED[entry]) > len(entry) // 2
    if member != "*":
        kind = kinds[struct]
        assert not (is_produced(kind, member) and is_consumed(kind, member)), "it has both, and needs no reason"


def test_every_member_of_a_create_request_is_read_or_answered_with_a_warning() -> None:
    parts = [one for one in vars(create).values() if isinstance(one, type) and issubclass(one, BaseModel)]
    warned = {name for path in NOT_CARRIED_OUT for name in path.split(".")}
    asked_for = {
        argument.value
        for tree in product()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "asked"
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }
    names = {name for part in parts for name in part.model_fields}
    assert len(names) > len(create.CreateRequest.model_fields)
    assert sorted(names - attributes() - warned - asked_for) == []
