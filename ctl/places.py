"""Where the services are: as the command line says, else where they were launched, else the usual address."""

import os
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from common import own_python
from ctl.codes import Code
from ctl.launcher.state_dir import StateDir
from ctl.problem import Problem

DEFAULT_REGISTRY = "http://localhost:18000"
DEFAULT_ROUTER = "http://localhost:8000"


def default_state_dir(env: Mapping[str, str]) -> str:
    """The folder of a source tree, where its scripts launch too; without one, a folder in the user's home.

    What an older svcctl started from a source tree stands in the home as well, and is seen until it is ended.
    """
    home = f"{env.get('XDG_STATE_HOME') or '~/.local/state'}/inference-svc"
    if own_python.CHECKOUT is None or any(Path(os.path.expanduser(home)).glob("run/*.json")):  # noqa: PTH111 - raises nothing
        return home
    return str(own_python.CHECKOUT)


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
    launched = StateDir(state_dir(args)).get(name)
    return launched.url or None if launched else None
