"""Where the services are: as the command line says, else where `up` started them, else the usual address."""

from argparse import Namespace
from pathlib import Path

from ctl.launcher.store import Store

DEFAULT_REGISTRY = "http://localhost:18000"
DEFAULT_ROUTER = "http://localhost:8000"


def state_dir(args: Namespace) -> Path:
    """Where `up` keeps what it started."""
    return Path(args.state_dir).expanduser().absolute()


def registry_url(args: Namespace) -> str:
    """The registry's address, or several by commas."""
    return str(args.registry_url or _launched(args, "registry") or DEFAULT_REGISTRY)


def router_url(args: Namespace) -> str:
    """The router's address."""
    return str(args.router_url or _launched(args, "router") or DEFAULT_ROUTER)


def api_url(args: Namespace) -> str:
    """Who serves `/api/v1`: the registry for the whole fleet, unless an agent or the router is named."""
    return str(args.api_url or registry_url(args))


def _launched(args: Namespace, name: str) -> str | None:
    started = Store(state_dir(args)).get(name)
    return started.url if started else None
