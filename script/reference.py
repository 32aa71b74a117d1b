"""Write the reference pages from the code: `python script/reference.py`, or `--check` to only tell what is out of date.

Settings, routes, metrics, log events and exit codes are read where they are declared, so that a page cannot forget one.
Only the meaning of an event is written by hand, in its page; it is kept when the page is written again.
"""

import ast
import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

from prometheus_client.core import Metric
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from babysitter import api as babysitter_api  # noqa: E402 - the project's root comes first
from babysitter.agent.metrics import families as agent_families  # noqa: E402 - as above
from babysitter.agent.routes import describe as describe_agent  # noqa: E402 - as above
from babysitter.agent.settings import AgentSettings  # noqa: E402 - as above
from babysitter.backend_settings import BACKEND_LABELS, Backend  # noqa: E402 - as above
from babysitter.metrics import families as babysitter_families  # noqa: E402 - as above
from babysitter.settings import BabysitterSettings  # noqa: E402 - as above
from common.exits import Exit  # noqa: E402 - as above
from common.http.tls import Tls  # noqa: E402 - as above
from common.settings import Option, options  # noqa: E402 - as above
from common.wire.replica import NodeCounts, ReplicaReport  # noqa: E402 - as above
from ctl.codes import MEANINGS  # noqa: E402 - as above
from registry.http.routes import ROUTES  # noqa: E402 - as above
from registry.settings import RegistrySettings  # noqa: E402 - as above
from registry.views.metrics import Metrics  # noqa: E402 - as above
from router.control import app as router_api  # noqa: E402 - as above
from router.control.metrics import RouterCollector  # noqa: E402 - as above
from router.counters import Shape, SharedCounters  # noqa: E402 - as above
from router.proxy.paths import PROXIED, STORED  # noqa: E402 - as above
from router.settings import RouterSettings  # noqa: E402 - as above

PAGES = ROOT / "docs" / "reference"
ROOMS = ("babysitter", "common", "ctl", "registry", "router")
NOTE = "<!-- Written by script/reference.py. Change the code, then run it again. -->"
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")
COMPUTED = {
    "workers": "one per core, at most 16",
    "cbclient.python": "the Python in use",
    "node": "the host's name",
    "babysitter_command": "`python -m babysitter` of the Python in use",
}
"""Defaults that depend on the machine."""
SERVICES: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("registry", RegistrySettings, "--config"),
    ("router", RouterSettings, "--config"),
    ("babysitter", BabysitterSettings, "--config-file"),
    ("agent", AgentSettings, "--config"),
)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def page(title: str, words: str, *parts: Iterable[str]) -> str:
    """A whole page."""
    lines = [f"# {title}", "", NOTE, "", words]
    for part in parts:
        lines += ["", *part]
    return "\n".join(lines) + "\n"


# -- settings ---------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    """Every setting of every process."""
    words = (
        "Each setting has one name. It can stand in the file given with `--config` (TOML or YAML; a name with a dot\n"
        "stands in that table), in the variable, or behind the flag; where a cell is empty, there is no such way. Flags\n"
        "win over variables, variables over the file. A key that is not known is an error that names the file and the\n"
        "key, and the process ends with 78; a variable that is not known is ignored. Lists are separated by commas in\n"
        "variables and behind flags.\n\n"
        "The variables that only the scripts read are in [the README](../../README.md#settings)."
    )
    parts = [_settings_of(name, model, flag) for name, model, flag in SERVICES]
    return page("Settings", words, *parts, *(_backend(model) for model in get_args(Backend)))


def _backend(model: type[BaseModel]) -> list[str]:
    """The `[backend]` table of one type of server."""
    type_ = get_args(model.model_fields["type"].annotation)[0]
    assert type_ in BACKEND_LABELS  # noqa: S101 - the union and its labels are one list
    rows = [
        (f"`{setting.key}`", _kind(setting), _default(setting), setting.info.description or "")
        for setting in options(model, "")
        if setting.key != "type"
    ]
    title = f'## babysitter: `[backend]` with `type = "{type_}"`'
    return [title, "", inspect.cleandoc(model.__doc__ or ""), "", *table(("name", "value", "default", "meaning"), rows)]


def _settings_of(name: str, model: type[BaseModel], flag: str) -> list[str]:
    prefix = f"SVC_{name.upper()}_"
    rows = [
        (
            f"`{setting.key}`",
            ", ".join(f"`{one}`" for one in setting.flags),
            ", ".join(f"`{one}`" for one in setting.env),
            _kind(setting),
            _default(setting),
            _meaning(setting),
        )
        for setting in options(model, prefix)
    ]
    heads = ("name", "flag", "variable", "value", "default", "meaning")
    module = {"agent": "babysitter.agent"}.get(name, name)
    return [f"## {name}", "", f"`python -m {module} {flag} FILE`, or `{prefix}CONFIG=FILE`.", "", *table(heads, rows)]


def _meaning(setting: Option) -> str:
    formerly = f" Also taken as {', '.join(f'`{name}`' for name in setting.was)}." if setting.was else ""
    return (setting.info.description or "") + formerly


def _kind(setting: Option) -> str:
    """What a value may be, in words."""
    limits = {}
    for limit in setting.info.metadata:
        for bound in ("ge", "gt", "le", "lt"):
            if (value := getattr(limit, bound, None)) is not None:
                limits[bound] = value
    words = _type(setting.info.annotation)
    if "ge" in limits and "le" in limits:
        return f"{words} {limits['ge']} to {limits['le']}"
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return " ".join([words, ", ".join(f"{signs[key]} {value}" for key, value in sorted(limits.items()))]).strip()


def _type(annotation: Any) -> str:
    if get_origin(annotation) in (Union, UnionType):
        inner = [part for part in get_args(annotation) if part is not NoneType]
        return _type(inner[0]) if len(inner) == 1 else "a table"
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{word}`" for word in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "list"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
    return names.get(annotation, "a table")


def _default(setting: Option) -> str:
    if setting.key in COMPUTED:
        return COMPUTED[setting.key]
    value = setting.info.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "must be given"
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


# -- routes -----------------------------------------------------------------------------------------------------------


def routes_page() -> str:
    """Every call of every process."""
    words = (
        'Errors are JSON, `{"error": …}`, with the status that fits. Every service describes itself at\n'
        "`GET /openapi.json`. `HEAD` works where `GET` does. Who may call what: [security](../guides/security.md)."
    )
    registry = [(f"`{route.method} {route.path}`", route.summary) for route in ROUTES]
    parts = [
        _routes_of("registry, port 18000", registry),
        _routes_of(
            "router, port 8000: its own",
            [*_described(router_api.describe()), _explain()],
        ),
        _passed_on(),
        _routes_of(
            "babysitter, its server's port + 1",
            _described(babysitter_api.describe()),
        ),
        _routes_of("agent, port 18100", _described(describe_agent())),
    ]
    return page("Routes", words, *parts)


def _routes_of(title: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    return [f"## {title}", "", *table(("call", "answer"), rows)]


def _described(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each route of an OpenAPI document with its summary."""
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            yield f"`{method.upper()} {path}`", call["summary"]


def _explain() -> tuple[str, str]:
    return "`POST /admin/explain`", "What would happen to the request in the body now: every candidate, and why not."


def _passed_on() -> list[str]:
    forms: dict[str, list[str]] = {}
    for path in sorted(map(bytes.decode, PROXIED), key=lambda path: (path.removeprefix("/v1"), path)):
        forms.setdefault(path.removeprefix("/v1"), []).append(f"`{path}`")
    words = "`POST`, where nothing else is said; `/realtime` is a WebSocket. Further paths, by any method: the setting `proxy_paths`."
    stored = [
        f"- `{method.decode()}` `/responses/{{id}}{rest.decode()}`, `/v1/responses/{{id}}{rest.decode()}`"
        for rest, methods in STORED.items()
        for method in methods
    ]
    return [
        "## router: passed on to a ready replica",
        "",
        words,
        "",
        *(f"- {', '.join(form)}" for form in forms.values()),
        *stored,
    ]


# -- metrics ----------------------------------------------------------------------------------------------------------


def metrics_page() -> str:
    """Every metric family of every process."""
    words = "`GET /metrics` in Prometheus' text form. Times are in seconds, sizes in bytes."
    heads = ("name", "kind", "labels", "meaning")
    parts = [[f"## {name}", "", *table(heads, map(_metric, families))] for name, families in metric_families().items()]
    return page("Metrics", words, *parts)


def metric_families() -> dict[str, list[Metric]]:
    """What each process shows, collected from collectors that have nothing to count."""
    crowd = cast("Any", _Nothing())
    shape = Shape(1, 1)
    source = cast(
        "Any",
        SimpleNamespace(
            registry_error=None,
            own_tls=Tls(),
            replicas=list,
            connections=int,
            workers_alive=int,
            left_out=int,
            limits_alone=bool,
            unreachable=dict,
            accounts=SimpleNamespace(by_key={}),
            deployments=SimpleNamespace(states={}, totals={}, waiting=dict),
        ),
    )
    router = RouterCollector(source, SharedCounters(SharedCounters.create(shape), shape))
    report = ReplicaReport(replica_id="r")
    nobody = cast(
        "Any", SimpleNamespace(spec=SimpleNamespace(name="r", label="mock"), state=None, report=report, serves=False)
    )
    return {
        "registry": list(Metrics(crowd, crowd, crowd, crowd).collect()),
        "router": list(router.collect()),
        "babysitter": list(babysitter_families(nobody, 0.0)),
        "agent": list(agent_families("n", (), NodeCounts(), 0)),
    }


class _Nothing:
    """A catalogue, writer, hub and routers of a registry in which nothing happened."""

    preserving_since = away = None
    unwritten: tuple[()] = ()
    revision = resyncs = healthy = 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _metric(family: Metric) -> tuple[str, str, str, str]:
    labels = getattr(family, "_labelnames", ())
    name = family.name + ("_total" if family.type == "counter" else "")
    return f"`{name}`", family.type, ", ".join(f"`{label}`" for label in labels), family.documentation


# -- events -----------------------------------------------------------------------------------------------------------


@dataclass
class Event:
    """A log event, wherever it is written."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    rooms: set[str] = field(default_factory=set)


def events_page() -> str:
    """Every log event; the meanings are the ones that the page has already."""
    words = (
        "Every process writes to standard error: one JSON object a line, or coloured text at a terminal (`log_json`\n"
        "decides otherwise). Every line has `timestamp` (UTC), `level`, `service` and `event`; a line of a babysitter\n"
        "has its `replica`, a line of a router's worker its `worker`. Secrets and prompts are hidden. Which id joins\n"
        "which lines: [watching it](../guides/watching.md)."
    )
    known = meanings()
    heads = ("event", "level", "written by", "fields", "meaning")
    rows = [
        (
            f"`{name}`",
            ", ".join(sorted(event.levels, key=LEVELS.index)),
            ", ".join(sorted(event.rooms)),
            ", ".join(f"`{one}`" for one in sorted(event.fields)),
            known.get(name, ""),
        )
        for name, event in sorted(events().items())
    ]
    return page("Log events", words, table(heads, rows))


def meanings() -> dict[str, str]:
    """The hand-written last column of the page as it stands."""
    path = PAGES / "events.md"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| `")]
    return {row[0].strip().strip("`"): row[-1].strip() for row in rows}


def events() -> dict[str, Event]:
    """Every event of the code, by name."""
    found: dict[str, Event] = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for name, call, level in _events_in(ast.parse(path.read_text())):
                event = found.setdefault(name, Event())
                event.levels.add("error" if level == "exception" else level)
                event.rooms.add(room)
                event.fields.update(_fields(call))
    return found


def _events_in(tree: ast.Module) -> Iterator[tuple[str, ast.Call, str]]:
    """Name, call and level of each event. A helper with a parameter `event` logs what its callers name."""
    helpers: dict[str, tuple[ast.Call, str]] = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for call in ast.walk(function):
                level = _level(call)
                if level and isinstance(call, ast.Call) and isinstance(call.args[0], ast.Name):
                    helpers[function.name] = call, level
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not call.args or not isinstance(call.args[0], ast.Constant):
            continue
        name = str(call.args[0].value)
        if level := _level(call):
            yield name, call, level
        elif isinstance(call.func, ast.Attribute) and call.func.attr in helpers:
            yield name, *helpers[call.func.attr]


def _level(call: ast.AST) -> str | None:
    """The level of a logger's call, or None for any other node."""
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return None
    owner = call.func.value
    ours = isinstance(owner, ast.Name) and owner.id in ("log", "logger") and call.func.attr in LEVELS
    return call.func.attr if ours else None


def _fields(call: ast.Call) -> Iterator[str]:
    for keyword in call.keywords:
        yield {"exc_info": "exception"}.get(keyword.arg or "", keyword.arg or "…")


# -- exit codes -------------------------------------------------------------------------------------------------------


def exits_page() -> str:
    """What each exit code means."""
    words = (
        "The systemd units do not start a process again after 78. A babysitter does not restart a server that ends\n"
        "with 78 or 125 (`babysitter.no_restart_codes`)."
    )
    source = ast.parse(inspect.getsource(Exit)).body[0]
    assert isinstance(source, ast.ClassDef)  # noqa: S101 - the enum itself
    told: dict[str, str] = {}
    last = ""
    for node in source.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            last = node.targets[0].id
        elif last and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            told[last] = re.sub(r" \(docs/faults[^)]*\)", "", str(node.value.value))
    processes = [(str(code.value), told.get(code.name, "")) for code in Exit]
    command = [(str(code.value), words[0].upper() + words[1:] + ".") for code, words in MEANINGS.items()]
    return page(
        "Exit codes",
        words,
        ["## Processes and scripts", "", *table(("code", "meaning"), processes)],
        ["## svcctl", "", *table(("code", "meaning"), command)],
    )


BOOK: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "routes.md": routes_page,
    "metrics.md": metrics_page,
    "events.md": events_page,
    "exit-codes.md": exits_page,
}


def main() -> int:
    """Write the pages, or with `--check` show how they differ from the code; returns 1 when they do."""
    check = "--check" in sys.argv[1:]
    stale = 0
    for name, make in BOOK.items():
        path, new = PAGES / name, make()
        old = path.read_text() if path.exists() else ""
        if old != new and check:
            stale = 1
            sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), name, "the code"))  # noqa: FBT003 - keepends
        elif old != new:
            path.write_text(new)
            sys.stdout.write(f"{path.relative_to(ROOT)} written\n")
    return stale


if __name__ == "__main__":
    sys.exit(main())
