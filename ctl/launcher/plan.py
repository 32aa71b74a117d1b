"""PURE. What is to be started, in which order, with which words, and whether the ports allow it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from common.names import is_localhost
from common.wire import address
from common.wire.address import bare

REGISTRY, ROUTER, AGENT, BABYSITTER = "registry", "router", "agent", "babysitter"
MODULES = {REGISTRY: "registry", ROUTER: "router", AGENT: "babysitter.agent", BABYSITTER: "babysitter"}
PORTS = {REGISTRY: 18000, ROUTER: 8000, AGENT: 18100}
"""Where each listens unless told otherwise."""
DEMO = ("mock-small", "mock-large")
"""Models of `up --demo`."""
PATIENCE_S = 60.0
"""For the processes of the suite themselves, on a slow machine; only servers take long."""


class Clash(ValueError):
    """Two parts want one port."""


@dataclass(frozen=True, slots=True)
class Listener:
    """The registry, the router or the agent: where it listens, its own settings file, and what that file names."""

    port: int
    host: str = "127.0.0.1"
    config: str | None = None
    named: frozenset[str] = frozenset()
    scheme: str = "http"


@dataclass(frozen=True, slots=True)
class BabysitterFile:
    """One babysitter's file. `port` is its server's; `named` are the settings that the file makes itself."""

    config: str
    name: str
    port: int
    host: str = "localhost"
    named: frozenset[str] = frozenset()
    scheme: str = "http"


@dataclass(frozen=True, slots=True)
class Part:
    """One process: `python -m MODULE ARGS…`, which answers HTTP at `url`.

    `ports` are all that it takes: its own is the last, a babysitter's server has the first. `serves` is what to tell of
    it, `patience_s` how long it may take until it answers.
    """

    name: str
    kind: str
    args: tuple[str, ...]
    url: str
    ports: tuple[int, ...]
    serves: str
    config: str | None = None
    patience_s: float = PATIENCE_S

    @property
    def port(self) -> int:
        """Where it answers."""
        return self.ports[-1]

    @property
    def module(self) -> str:
        """What Python runs."""
        return MODULES[self.kind]

    @property
    def log(self) -> str:
        """The name of its log."""
        return f"{self.kind}_{self.ports[0]}.log"


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node.

    `state` is the directory of data and logs, None where it is the folder that the processes work in; `steered` is true
    when the registry's place was chosen here, and babysitters follow it instead of their files.
    """

    state: str | None
    registry: Listener | None
    router: Listener | None
    agent: Listener | None
    babysitters: tuple[BabysitterFile, ...]
    registry_url: str
    steered: bool


def scheme(kind: str, env: Mapping[str, str], named: Collection[str] = ()) -> str:
    """What a service of `kind` speaks that has `env`, and a file that names the settings `named`."""
    variables = ("SVC_TLS_CERT_FILE", f"SVC_{kind.upper()}_TLS_CERT_FILE")
    return "https" if "tls_cert_file" in named or any(map(env.get, variables)) else "http"


def local_url(host: str, port: int, scheme: str = "http") -> str:
    """Where this machine reaches a server that listens on `host`."""
    if is_localhost(host) or host in ("", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return address.url(host, port, scheme=scheme)


def babysitter_url(host: str, port: int, scheme: str = "http") -> str:
    """Where this machine reaches the babysitter of a server at `host`:`port`.

    It answers on loopback, whatever it announces, unless `host` is a loopback address of its own.
    """
    return local_url(host if host.startswith("127.") or bare(host) == "::1" else "", port + 1, scheme)


def babysitter(file: BabysitterFile, args: Sequence[str]) -> Part:
    """The part of a babysitter that is started with `args`."""
    url = babysitter_url(file.host, file.port, file.scheme)
    serves = f"{file.name} at {local_url(file.host, file.port)}"
    name, ports = f"{BABYSITTER}_{file.port}", (file.port, file.port + 1)
    return Part(name, BABYSITTER, tuple(args), url, ports, serves, file.config or None)


def parts(node: NodePlan) -> list[Part]:
    """The processes, in the order in which they are started.

    Raises:
        Clash: Two of them want one port.
    """
    follow = {"registry_url": node.registry_url}
    made = []
    if node.registry:
        made.append(_service(REGISTRY, node.registry, _folders(node, data_dir="data/registry"), node))
    if node.router:
        made.append(_service(ROUTER, node.router, _folders(node, data_dir="data/router") | follow, node))
    if node.agent:
        made.append(_service(AGENT, node.agent, _folders(node, local_workdir_root="replicas") | follow, node))
    made += [_babysitter(file, node) for file in node.babysitters]
    for _, reason in clashes(made):
        raise Clash(reason)
    return made


def clashes(made: Sequence[Part]) -> Iterator[tuple[Part, str]]:
    """Parts that need a port of an earlier one, each with the reason in words."""
    holder: dict[int, str] = {}
    for part in made:
        who = part.config or f"the {part.name}"
        taken = next((port for port in part.ports if port in holder), None)
        if taken is not None:
            yield part, f"{who} needs port {taken}, which is for {holder[taken]}"
            continue
        holder |= dict.fromkeys(part.ports, who)


def _folders(node: NodePlan, **names: str) -> dict[str, str]:
    """Settings that name a folder under the state directory; none where the defaults lead there."""
    return {} if node.state is None else {setting: f"{node.state}/{name}" for setting, name in names.items()}


def _service(kind: str, listener: Listener, ours: Mapping[str, str], node: NodePlan) -> Part:
    """One service: its place is always told by flag, because variables such as HOST may mean something else here."""
    config = ("--config", listener.config) if listener.config else ()
    place = ("--router-port" if kind == ROUTER else "--port", str(listener.port), "--host", listener.host)
    url = local_url(listener.host, listener.port, listener.scheme)
    args = (*config, *place, *_flags(ours, listener.named, node))
    return Part(kind, kind, args, url, (listener.port,), url)


def _flags(ours: Mapping[str, str], named: Collection[str], node: NodePlan) -> list[str]:
    """What we choose, as flags; a file's own choice stands, but for a registry that was chosen here."""
    chosen = {
        name: value for name, value in ours.items() if name not in named or (name == "registry_url" and node.steered)
    }
    return [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", value)]


def _babysitter(file: BabysitterFile, node: NodePlan) -> Part:
    ours = {**_folders(node, data_dir="data", log_dir="logs"), "registry_url": node.registry_url}
    args = ["--config-file", file.config, *_flags(ours, file.named, node)]
    return babysitter(file, args)


def demo_file(model: str, port: int, registry_url: str) -> str:
    """The configuration of a mock replica."""
    return (
        f'# Made by "svcctl up --demo": a mock server of the OpenAI API.\nname = "{model}"\nport = {port}\n'
        f'registry_url = "{registry_url}"\n\n[backend]\ntype = "mock"\nmodels = ["{model}"]\n'
        'args = ["--token-delay-s", "0.03"]\n\n[babysitter]\ndrain_s = 3\n'
    )
