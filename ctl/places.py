"""Where the services are: as the command line says, else where `up` started them, else the usual address."""

import os
import tempfile
from argparse import Namespace
from pathlib import Path

from ctl.codes import Code
from ctl.launcher.store import Store
from ctl.problem import Problem

DEFAULT_REGISTRY = "http://localhost:18000"
DEFAULT_ROUTER = "http://localhost:8000"


def state_dir(args: Namespace) -> Path:
    """Where `up` keeps what it started.

    Raises:
        Problem: There is no home directory, and the place that stands for it is another user's.
    """
    try:
        return Path(args.state_dir).expanduser().absolute()
    except RuntimeError:  # neither HOME nor an entry for this user, as in many containers
        place = Path(tempfile.gettempdir()) / f"inference-svc-{os.geteuid()}"
    if place.exists() and place.stat().st_uid != os.geteuid():
        raise Problem(f"no home directory, and {place} is another user's", hint="set SVC_STATE_DIR", code=Code.CONFIG)
    return place


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
