"""PURE. What `up` is to start, in which order, with which words, and whether the ports allow it."""

from collections.abc import Sequence
from dataclasses import dataclass

REGISTRY, ROUTER, AGENT, BABYSITTER = "registry", "router", "agent", "babysitter"
MODULES = {REGISTRY: "registry", ROUTER: "router", AGENT: "babysitter.agent", BABYSITTER: "babysitter"}
DEMO = ("mock-small", "mock-large")
"""Models of `up --demo`."""


class Clash(ValueError):
    """Two parts want one port."""


@dataclass(frozen=True, slots=True)
class Service:
    """The registry, the router or the agent, as asked for: where it listens, and its own settings file."""

    port: int
    host: str = "127.0.0.1"
    config: str | None = None


@dataclass(frozen=True, slots=True)
class Replica:
    """One babysitter's file. `port` is its server's; `named` are the settings that the file makes itself."""

    config: str
    name: str
    port: int
    host: str = "localhost"
    named: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Part:
    """One process: `python -m MODULE ARGS…`, which answers HTTP at `url`. `serves` is what to tell of it."""

    name: str
    kind: str
    args: tuple[str, ...]
    url: str
    port: int
    serves: str
    config: str | None = None

    @property
    def module(self) -> str:
        """What Python runs."""
        return MODULES[self.kind]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A node.

    `state` is the directory of data and logs; `steered` is true when the registry's place was chosen here, and
    babysitters follow it instead of their files.
    """

    state: str
    registry: Service | None
    router: Service | None
    agent: Service | None
    replicas: tuple[Replica, ...]
    registry_url: str
    steered: bool


def local_url(host: str, port: int) -> str:
    """Where this machine reaches a server that listens on `host`."""
    if host in ("", "localhost", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def parts(wanted: Wanted) -> list[Part]:
    """The processes, in the order in which they are started.

    Raises:
        Clash: Two of them want one port.
    """
    made = []
    if wanted.registry:
        made.append(_service(REGISTRY, wanted.registry, ("--data-dir", f"{wanted.state}/data/registry")))
    if wanted.router:
        follow = ("--registry-url", wanted.registry_url, "--data-dir", f"{wanted.state}/data/router")
        made.append(_service(ROUTER, wanted.router, follow))
    if wanted.agent:
        root = ("--local-workdir-root", f"{wanted.state}/replicas", "--registry-url", wanted.registry_url)
        made.append(_service(AGENT, wanted.agent, root))
    made += [_babysitter(replica, wanted) for replica in wanted.replicas]
    _check_ports(made)
    return made


def _service(kind: str, service: Service, args: tuple[str, ...]) -> Part:
    flag = "--router-port" if kind == ROUTER else "--port"
    config = ("--config", service.config) if service.config else ()
    url = local_url(service.host, service.port)
    return Part(kind, kind, (*config, flag, str(service.port), *args), url, service.port, url)


def _babysitter(replica: Replica, wanted: Wanted) -> Part:
    places = {"data_dir": f"{wanted.state}/data", "log_dir": f"{wanted.state}/logs"}
    args = ["--config-file", replica.config]
    for name, value in places.items():
        if name not in replica.named:
            args += [f"--{name.replace('_', '-')}", value]
    if wanted.steered or "registry_url" not in replica.named:
        args += ["--registry-url", wanted.registry_url]
    return Part(
        f"{BABYSITTER}-{replica.port}",
        BABYSITTER,
        tuple(args),
        local_url(replica.host, replica.port + 1),
        replica.port + 1,
        f"{replica.name} at {local_url(replica.host, replica.port)}",
        replica.config,
    )


def _check_ports(made: Sequence[Part]) -> None:
    holder: dict[int, str] = {}
    for part in made:
        ports = (part.port - 1, part.port) if part.kind == BABYSITTER else (part.port,)
        for port in ports:
            who = part.config or f"the {part.name}"
            if port in holder:
                raise Clash(f"{who} needs port {port}, which is for {holder[port]}")
            holder[port] = who


def demo_file(model: str, port: int, registry_url: str) -> str:
    """The configuration of a mock replica."""
    return (
        f'# Made by "svcctl up --demo": a mock server of the OpenAI API.\nname = "{model}"\nport = {port}\n'
        f'registry_url = "{registry_url}"\n\n[backend]\ntype = "mock"\nmodels = ["{model}"]\n'
        'args = ["--token-delay-s", "0.03"]\n'
    )
