"""The registry's settings (docs/contract.md 1, and what was added beside it)."""

from pathlib import Path

from common.service import ServiceSettings
from common.settings import CommaList, option


class RegistrySettings(ServiceSettings):
    """Service registry: keeps the list of inference servers and babysitters, by lease."""

    host: str = option("127.0.0.1", "Address to listen on.", restart=True)
    port: int = option(18000, "Port to listen on; 0 lets the kernel choose.", ge=0, le=65535, restart=True)
    health_interval: float = option(30.0, "Seconds between two probes of one service.", gt=0, le=3600)
    health_timeout: float = option(5.0, "Seconds that one probe may take.", gt=0, le=300)
    cleanup_interval: float = option(
        60.0,
        "Longest time in seconds between two looks for ended leases; at least one look a second.",
        gt=0,
        le=3600,
        restart=True,
    )
    data_dir: Path = option(Path("data"), "Directory of the embedded store.", restart=True)
    store: str | None = option(
        None,
        "Where records are kept: sqlite:///PATH, memory://, etcd://HOST:PORT,… or etcds://HOST:PORT,… (TLS); unset: in "
        "the data directory.",
        restart=True,
    )
    etcd_ca_file: Path | None = option(
        None, "PEM file of the CAs that etcd's members are checked against; unset: the system's CAs.", restart=True
    )
    etcd_cert_file: Path | None = option(
        None, "PEM file of the client certificate that etcd's members want to see.", restart=True
    )
    etcd_key_file: Path | None = option(None, "PEM file of that certificate's key, without a passphrase.", restart=True)
    etcd_user: str | None = option(None, "User that etcd's own authentication wants to see.", restart=True)
    etcd_password_file: Path | None = option(
        None, "File with that user's password, which only its owner can read.", restart=True
    )
    insecure_no_auth: bool = option(False, "Listen on other than loopback addresses without tokens.")
    read_token_file: CommaList = option((), "Files with tokens that may read.")
    register_token_file: CommaList = option(
        (), "Files with tokens that may register; PREFIX=FILE limits one to names that begin with PREFIX."
    )
    admin_token_file: CommaList = option((), "Files with tokens that may do everything.")
    agent_token_file: Path | None = option(
        None, "File with the token of the node agents, sent to whoever registers as one."
    )
    replica_ca_file: Path | None = option(
        None,
        "PEM file of the CAs, or of single certificates (pinning), that services on https are checked against; unset: "
        "the system's CAs.",
        restart=True,
    )
    replica_tls_verify: bool = option(True, "Check certificates and names of services on https.", restart=True)
    allowed_networks: CommaList = option(
        (), "Networks whose addresses may be registered; unset: the private ones, and loopback when listening there."
    )
    allowed_hosts: CommaList = option(("*",), "Host names that may be registered; * is every name.")
    lowest_port: int = option(1024, "Lowest port that may be registered, besides 80 and 443.", ge=1, le=65535)
    drain_timeout_s: float = option(
        5.0,
        "Seconds that open requests may take after SIGTERM.",
        flags=["--drain-timeout"],
        was=["drain_timeout"],
        gt=0,
        le=600,
        restart=True,
    )
    hand_over: bool = option(
        False,
        "Routers move the streams of replicas that a rollout, scaling or an eviction stops, for models with `rescue`.",
    )
    usage_hours_days: int = option(
        35, "Days for which tokens are kept by the hour; after them by the day.", ge=3, le=400
    )
    usage_days: int = option(400, "Days for which tokens are kept.", ge=3, le=4000)
    max_services: int = option(50_000, "Most records at once; a replica has two.", ge=1, le=1_000_000)
    max_watchers: int = option(1000, "Most watches and long polls at once.", ge=1, le=100_000)
    max_connections: int = option(
        16_384, "Most connections at once, one or two of each babysitter; requests beyond are answered 503.", ge=1
    )
    max_heartbeats_per_second: float = option(
        500.0,
        "Heartbeats that a registry wants in a second, at most: of more records than beat so often, babysitters and agents "
        "are told to beat less often.",
        gt=0,
        le=100_000,
    )
    probe_concurrency: int = option(256, "Most probes at once.", ge=1, le=1000)
