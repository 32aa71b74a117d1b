"""PURE. What `up` is to start, in which order, with which words, and whether the ports allow it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from common.names import is_localhost

REGISTRY, ROUTER, AGENT, BABYSITTER = "registry", "router", "agent", "babysitter"
MODULES = {REGISTRY: "registry", ROUTER: "router", AGENT: "babysitter.agent", BABYSITTER: "babysitter"}
DEMO = ("mock-small", "mock-large")
"""Models of `up --demo`."""


class Clash(ValueError):
    """Two parts want one port."""


@dataclass(frozen=True, slots=True)
class Service:
    """The registry, the router or the agent: where it listens, its own settings file, and what that file names."""

    port: int
    host: str = "127.0.0.1"
    config: str | None = None
    named: frozenset[str] = frozenset()


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
    if is_localhost(host) or host in ("", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def parts(wanted: Wanted) -> list[Part]:
    """The processes, in the order in which they are started.

    Raises:
        Clash: Two of them want one port.
    """
    follow = {"registry_url": wanted.registry_url}
    made = []
    if wanted.registry:
        made.append(_service(REGISTRY, wanted.registry, {"data_dir": f"{wanted.state}/data/registry"}, wanted))
    if wanted.router:
        made.append(_service(ROUTER, wanted.router, {"data_dir": f"{wanted.state}/data/router", **follow}, wanted))
    if wanted.agent:
        root = {"local_workdir_root": f"{wanted.state}/replicas"}
        made.append(_service(AGENT, wanted.agent, {**root, **follow}, wanted))
    made += [_babysitter(replica, wanted) for replica in wanted.replicas]
    _check_ports(made)
    return made


def _service(kind: str, service: Service, ours: Mapping[str, str], wanted: Wanted) -> Part:
    """One service: its place is always told by flag, because variables such as HOST may mean something else here."""
    config = ("--config", service.config) if service.config else ()
    place = ("--router-port" if kind == ROUTER else "--port", str(service.port), "--host", service.host)
    url = local_url(service.host, service.port)
    args = (*config, *place, *_flags(ours, service.named, wanted))
    return Part(kind, kind, args, url, service.port, url)


def _flags(ours: Mapping[str, str], named: Collection[str], wanted: Wanted) -> list[str]:
    """What we choose, as flags; a file's own choice stands, but for a registry that was chosen here."""
    told = {
        name: value for name, value in ours.items() if name not in named or (name == "registry_url" and wanted.steered)
    }
    return [word for name, value in told.items() for word in (f"--{name.replace('_', '-')}", value)]


def _babysitter(replica: Replica, wanted: Wanted) -> Part:
    ours = {"data_dir": f"{wanted.state}/data", "log_dir": f"{wanted.state}/logs", "registry_url": wanted.registry_url}
    args = ["--config-file", replica.config, *_flags(ours, replica.named, wanted)]
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
        'args = ["--token-delay-s", "0.03"]\n\n[babysitter]\ndrain_s = 3\n'
    )
