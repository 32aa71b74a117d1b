"""PURE. The variables of the launch scripts (README.md, docs/contract.md 3), and what they make of each process."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ctl.launcher import plan
from ctl.launcher.plan import AGENT, BABYSITTER, PORTS, REGISTRY, ROUTER, BabysitterFile, Part

FLAGS: Mapping[str, Mapping[str, str]] = {
    REGISTRY: {
        "--host": "REGISTRY_HOST",
        "--health-interval": "REGISTRY_HEALTH_INTERVAL",
        "--health-timeout": "REGISTRY_HEALTH_TIMEOUT",
        "--cleanup-interval": "REGISTRY_CLEANUP_INTERVAL",
    },
    ROUTER: {
        "--host": "ROUTER_HOST",
        "--registry-url": "ROUTER_REGISTRY_URL",
        "--health-interval": "ROUTER_HEALTH_INTERVAL",
        "--health-timeout": "ROUTER_HEALTH_TIMEOUT",
        "--registry-sync-interval": "ROUTER_REGISTRY_SYNC_INTERVAL",
        "--max-errors": "ROUTER_MAX_ERRORS",
        "--service-removal-grace-period": "ROUTER_SERVICE_REMOVAL_GRACE_PERIOD",
        "--static-services": "ROUTER_STATIC_SERVICES",
    },
    AGENT: {
        "--host": "AGENT_HOST",
        "--registry-url": "AGENT_REGISTRY_URL",
        "--node": "AGENT_NODE",
        "--babysitter-config": "AGENT_BABYSITTER_CONFIG",
    },
    BABYSITTER: {"--registry-url": "BABYSITTER_REGISTRY_URL", "--router-url": "BABYSITTER_ROUTER_URL"},
}
"""Flags by the variable that gives them. `none` is a URL of nobody, which stands over what a file says."""
LAUNCHED = {REGISTRY: "LAUNCH_REGISTRY", ROUTER: "LAUNCH_ROUTER", AGENT: "LAUNCH_AGENT"}
"""Whether launch_all.sh starts it."""
PLACES = {
    REGISTRY: ("REGISTRY_HOST", "REGISTRY_PORT", "REGISTRY_WAIT_TIMEOUT"),
    ROUTER: ("ROUTER_HOST", "ROUTER_PORT", "ROUTER_WAIT_TIMEOUT"),
    AGENT: ("AGENT_HOST", "AGENT_PORT", "AGENT_WAIT_TIMEOUT"),
}
"""Where it listens, and how long the launch waits until it answers."""
FOLLOWED = {ROUTER: "ROUTER_REGISTRY_URL", AGENT: "AGENT_REGISTRY_URL"}
"""The registry that it follows."""
_NUMBERS = ("_INTERVAL", "_TIMEOUT", "_PERIOD", "_ERRORS")
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


class WrongVariable(ValueError):
    """A variable cannot be used; the text names it."""


@dataclass(frozen=True, slots=True)
class Variables:
    """Values by name; an empty one counts as not set."""

    values: Mapping[str, str]

    def text(self, name: str, default: str = "") -> str:
        """As it is."""
        return self.values.get(name) or default

    def port(self, name: str, default: int) -> int:
        """A port.

        Raises:
            WrongVariable: It is none.
        """
        value = self.text(name, str(default))
        if value.startswith("tcp://"):
            service = name.removesuffix("_PORT").lower().replace("_", "-")
            raise WrongVariable(
                f"{name} is '{value}': Kubernetes sets such a variable for each Service, here for one named '{service}'. "
                f"Set enableServiceLinks: false in the pod, or {name} yourself."
            )
        if not re.fullmatch("[0-9]{1,5}", value, re.ASCII) or not 1 <= int(value) <= 65_535:  # noqa: PLR2004 - a port
            raise WrongVariable(f"{name} must be a port (1 to 65535), not '{value}'")
        return int(value)

    def number(self, name: str, default: float) -> float:
        """A number, of seconds mostly.

        Raises:
            WrongVariable: It is none.
        """
        value = self.text(name, str(default))
        if not re.fullmatch("[0-9]{1,9}([.][0-9]+)?", value, re.ASCII):
            raise WrongVariable(f"{name} must be a number, not '{value}'")
        return float(value)

    def whole_number(self, name: str, default: int) -> int:
        """A whole number.

        Raises:
            WrongVariable: It is none.
        """
        value = self.text(name, str(default))
        if not re.fullmatch("[0-9]{1,9}", value, re.ASCII):
            raise WrongVariable(f"{name} must be a whole number, not '{value}'")
        return int(value)

    def is_true(self, name: str, *, default: bool) -> bool:
        """A switch.

        Raises:
            WrongVariable: It is neither true nor false.
        """
        value = self.text(name, str(default)).lower()
        if value not in ("true", "1", "yes", "on", "false", "0", "no", "off"):
            raise WrongVariable(f"{name} must be true or false, not '{self.text(name)}'")
        return value in ("true", "1", "yes", "on")

    def flags(self, table: Mapping[str, str]) -> list[str]:
        """Each flag whose variable is set, with its value.

        Raises:
            WrongVariable: A number is none.
        """
        words = []
        for flag, name in table.items():
            if value := self.text(name):
                if name.endswith(_NUMBERS):
                    self.number(name, 0)
                words += [flag, "" if value == "none" else value]
        return words

    def with_(self, **more: str) -> "Variables":
        """The same, but for some."""
        return Variables({**self.values, **more})

    @property
    def registry_url(self) -> str:
        """Where this machine reaches the registry that the scripts launch."""
        port = self.port("REGISTRY_PORT", PORTS[REGISTRY])
        host, scheme = self.text("REGISTRY_HOST"), plan.scheme(REGISTRY, self.values)
        return plan.local_url(host, port, scheme) if host else f"{scheme}://localhost:{port}"


def service(kind: str, variables: Variables) -> Part:
    """The registry, the router or the agent, as its variables say.

    Raises:
        WrongVariable: One of them cannot be used.
    """
    host, port_name, timeout = PLACES[kind]
    if kind == AGENT:  # a plain HOST or PORT is for one that is started by hand
        variables = variables.with_(AGENT_HOST=variables.text("AGENT_HOST", "127.0.0.1"))
    if followed := FOLLOWED.get(kind):
        variables = variables.with_(**{followed: variables.text(followed, variables.registry_url)})
    port = variables.port(port_name, PORTS[kind])
    args = ["--router-port" if kind == ROUTER else "--port", str(port), *variables.flags(FLAGS[kind])]
    if kind == ROUTER and variables.is_true("ROUTER_EXPOSE_REPLICA_API", default=False):
        args.append("--expose-replica-api")
    url = plan.local_url(variables.text(host), port, plan.scheme(kind, variables.values))
    return Part(kind, kind, tuple(args), url, (port,), url, patience_s=variables.number(timeout, 30))


def babysitter(variables: Variables, file: BabysitterFile, args: Sequence[str]) -> Part:
    """The babysitter of a server that its file, or `args`, have listen where `file` says.

    BABYSITTER_HOST is where others reach it. A server that listens everywhere goes on doing so.

    Raises:
        WrongVariable: A variable cannot be used.
    """
    flag = "--advertise-host" if file.host in EVERYWHERE else "--host"
    words = [*args, *variables.flags(FLAGS[BABYSITTER]), *variables.flags({flag: "BABYSITTER_HOST"})]
    host = variables.text("BABYSITTER_HOST", file.host)
    part = plan.babysitter(replace(file, host=host), words)
    # The babysitter itself is up in a moment; only its server may be given less time than a slow machine needs for that.
    return replace(part, patience_s=max(30.0, variables.number("BABYSITTER_WAIT_TIMEOUT", 60)))
