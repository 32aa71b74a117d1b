"""What the shell offers after TAB: names that exist now. A registry that does not answer at once offers nothing."""

from __future__ import annotations  # types of what is imported late

import json
from argparse import Action, Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from argcomplete.completers import FilesCompleter

from common.exits import ConfigurationError
from common.http.access import read_token
from common.wire.words import RecordKind
from ctl import late, places
from ctl.problem import Problem
from ctl.secret import read_secret

if TYPE_CHECKING:
    import ssl
    from urllib import request
else:
    ssl, request = map(late.module, ("ssl", "urllib.request"))

TIMEOUT_S = 1.0
NOTHING: dict[str, list[Any]] = {
    "services": [],
    "replicas": [],
    "data": [],
    "deployments": [],
    "templates": [],
    "nodes": [],
    "keys": [],
}
Completer = Callable[..., Iterable[str]]


def attach(action: Action, completer: Completer) -> None:
    """Let `completer` offer the values of `action` (argcomplete reads this attribute)."""
    action.completer = completer  # type: ignore[attr-defined] # argcomplete's documented way


def files(*endings: str) -> Completer:
    """Files, of these endings when some are given."""
    made: Completer = FilesCompleter(endings)
    return made


def services(parsed_args: Namespace, **_rest: Any) -> list[str]:
    """Names of the routable records."""
    records = _get(parsed_args, places.registry_url(parsed_args), "/services", parsed_args.token_file)["services"]
    return [str(item["name"]) for item in records if item.get("metadata", {}).get("type") == RecordKind.SERVER]


def replicas(parsed_args: Namespace, **_rest: Any) -> list[str]:
    """Ids of the replicas."""
    infos = _get(parsed_args, places.api_url(parsed_args), "/api/v1/replicas", parsed_args.token_file)["replicas"]
    return [str(item["replica_id"]) for item in infos]


def deployments(parsed_args: Namespace, **_rest: Any) -> list[str]:
    """Names of the deployments."""
    infos = _get(parsed_args, places.registry_url(parsed_args), "/api/v1/deployments", parsed_args.token_file)[
        "deployments"
    ]
    return [str(item["name"]) for item in infos]


def keys(parsed_args: Namespace, **_rest: Any) -> list[str]:
    """Names of the API keys."""
    found = _get(parsed_args, places.registry_url(parsed_args), "/api/v1/keys", parsed_args.token_file)["keys"]
    return [str(item["name"]) for item in found]


def nodes(parsed_args: Namespace, **_rest: Any) -> list[str]:
    """Names of the nodes that have an agent."""
    found = _get(parsed_args, places.registry_url(parsed_args), "/api/v1/nodes", parsed_args.token_file)["nodes"]
    return [str(item["node"]) for item in found]


def templates(parsed_args: Namespace, **_rest: Any) -> list[str]:
    """Names of the agents' templates."""
    found = _get(parsed_args, places.api_url(parsed_args), "/api/v1/templates", parsed_args.token_file)["templates"]
    return sorted({str(item["name"]) for item in found})


def models(parsed_args: Namespace, **_rest: Any) -> list[str]:
    """Ids of the models that can be asked."""
    listed = _get(parsed_args, places.router_url(parsed_args), "/v1/models", parsed_args.key_file, key=True)["data"]
    return [str(item["id"]) for item in listed]


def _get(args: Namespace, base: str, path: str, secret_file: str | None, *, key: bool = False) -> Any:
    headers = {}
    try:
        if secret_file:
            token = read_secret(Path(secret_file)) if key else read_token(Path(secret_file))
            headers["Authorization"] = f"Bearer {token}"
        asked = request.Request(base.split(",", maxsplit=1)[0].rstrip("/") + path, headers=headers)
        if asked.type not in ("http", "https"):
            return NOTHING
        handlers: list[request.BaseHandler] = [request.ProxyHandler({})]
        if asked.type == "https":
            handlers.append(request.HTTPSHandler(context=_context(args)))
        with request.build_opener(*handlers).open(asked, timeout=TIMEOUT_S) as answer:
            return json.load(answer)
    except (OSError, ValueError, ConfigurationError, Problem):
        return NOTHING


def _context(args: Namespace) -> ssl.SSLContext:
    """What TLS is checked with."""
    context = ssl.create_default_context(cafile=args.tls_ca_file)
    if args.tls_cert_file:
        context.load_cert_chain(args.tls_cert_file, args.tls_key_file, password="")
    return context
