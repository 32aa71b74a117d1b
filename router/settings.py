"""The router's settings: flags, variables and file keys, each declared once."""

import os
import re
import stat
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
from pydantic import Field, field_validator, model_validator

from common.http.access import read_credential
from common.settings import CommaList, Settings, SettingsError, option, read_file
from common.tracing import TracedSettings
from router.keys import Key, KeyFile, faults
from router.policy.cache_type import DEFAULT_THRESHOLD_BYTES
from router.policy.models import POLICIES, RETIRED, ModelRule, ModelRules
from router.policy.models import faults as faults_of_rules
from router.policy.parameters import faults as faults_of_parameters
from router.policy.parameters import parameters

_ORIGIN = re.compile(
    r"[a-z][a-z0-9+.-]*://[a-z0-9._-]+(?::[0-9]{1,5})?|[a-z][a-z0-9+.-]*://\[[0-9a-f:]+\](?::[0-9]{1,5})?"
)
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._-]+)+")


class ParameterSettings(Settings):
    """What the router changes in the requests for one model, alias or pattern."""

    defaults: dict[str, Any] = Field(default_factory=dict)
    forced: dict[str, Any] = Field(default_factory=dict)
    removed: CommaList = ()

    @model_validator(mode="after")
    def _can_be_changed(self) -> Self:
        wrong = faults_of_parameters(self.defaults, self.forced, self.removed)
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class ModelSettings(Settings):
    """What is set for one model, alias or pattern."""

    policy: str | None = None
    split: dict[str, float] = Field(default_factory=dict)
    fallbacks: CommaList = ()
    parameters: ParameterSettings = Field(default_factory=ParameterSettings)
    messages: Literal["native", "translate"] | None = None
    rescue: bool = False
    hedge: bool = False
    ask_usage: bool = False


class RouterSettings(TracedSettings):
    """One HTTP port in front of every ready inference server: model-aware, balancing, OpenAI-style."""

    router_port: int = option(
        8000, "Port to listen on.", flags=("--router-port", "--port"), ge=0, le=65535, restart=True
    )
    host: str = option("127.0.0.1", "Address to listen on.", restart=True)
    registry_url: CommaList = option(
        ("http://localhost:18000",),
        "Registry URLs, separated by commas; the first that answers is used. An empty value, or none beside static "
        "services, means that no registry is followed.",
        restart=True,
    )
    registry_token_file: Path | None = option(None, "File (mode 0600) with the registry's read token.", restart=True)
    advertise: bool = option(
        True, "Tell the registry where the router is, for its page and for Prometheus.", restart=True
    )
    advertise_url: str | None = option(
        None,
        "URL that others reach the router at; unset: made of the address it listens on.",
        pattern=r"^https?://",
        restart=True,
    )
    static_services: Path | None = option(None, "JSON file of services that are always in the table.")
    health_interval: float = option(30.0, "Seconds between probes of a replica.", gt=0)
    health_timeout: float = option(5.0, "Seconds a probe may take.", gt=0)
    max_errors: int = option(3, "Failed probes in a row that take a replica out.", ge=1)
    registry_sync_interval: float = option(10.0, "Seconds between polls of a registry without watch.", gt=0)
    service_removal_grace_period: float = option(
        60.0, "Seconds a replica that vanished from the registry is kept while our own probe passes.", ge=0
    )
    workers: int = option(lambda: min(os.cpu_count() or 1, 16), "Worker processes.", ge=1, le=64, restart=True)
    data_dir: Path = option(Path("data"), "Folder for the last known table.", restart=True)
    proxy_paths: CommaList = option((), "Further paths to proxy; `*` proxies every path the router does not own.")
    strip_prefixes: CommaList = option(
        (), "Prefixes that are taken off paths when a known path is left, such as /openai or /api."
    )
    proxy_timeout_seconds: float = option(
        1800.0, "Seconds one proxied request may take in all.", env=("PROXY_TIMEOUT_SECONDS",), gt=0
    )
    connect_timeout_s: float = option(2.0, "Seconds to connect to a replica.", gt=0)
    first_byte_timeout_s: float = option(600.0, "Seconds until the first byte of an answer.", gt=0)
    idle_timeout_s: float = option(300.0, "Seconds between two bytes of an answer.", gt=0)
    websocket_timeout_s: float = option(3600.0, "Seconds one WebSocket may last, as long as OpenAI's.", gt=0)
    max_retries: int = option(2, "Further replicas tried before the first byte of an answer.", ge=0, le=10)
    max_rescues: int = option(
        1,
        "Times that one stream goes on elsewhere because its replica was lost, for models with `rescue`.",
        ge=0,
        le=10,
    )
    cache_type_routing_threshold: int = option(
        DEFAULT_THRESHOLD_BYTES,
        "Bytes of text above which replicas with a static cache are preferred.",
        env=("CACHE_TYPE_ROUTING_THRESHOLD",),
        ge=0,
    )
    policy: str = option(
        "cost",
        f"Who gets a request, for models without a policy of their own: {', '.join(POLICIES)} (docs/routing.md).",
    )
    models: dict[str, ModelSettings] = option(
        {},
        "Per model name or pattern: policy, split (an alias's parts by weight), fallbacks, parameters (what is changed in "
        "its requests: defaults, forced, removed), rescue and hedge (docs/streams.md), ask_usage (docs/usage.md).",
        flags=(),
    )
    sticky_keys: bool = option(
        True,
        "Requests with a prompt_cache_key, or else a forwarded address, stay with one replica while it is not far above "
        "the mean, whatever the policy.",
    )
    allow_policy_header: bool = option(False, "Let clients choose a policy per request (X-Routing-Policy).")
    session_header: str = option("x-session-id", "Request header that names a session, for the policy `session`.")
    slow_start_s: float = option(
        30.0, "Seconds in which a replica that joins a running fleet gets from a tenth to all of its share.", ge=0
    )
    read_ahead_s: float = option(
        1.0,
        "Seconds of reading that a replica gets ahead under the policy cost; other prompts for it wait here, the shortest first. "
        "0: it gets all at once.",
        ge=0,
    )
    prefix_blocks: int | None = option(
        None, "Ignored, leave it out: a worker remembers 400,000 blocks of prompts, 50 MB.", retired=True
    )
    max_body_bytes: int = option(32 << 20, "Largest request body.", ge=1024)
    max_bodies_bytes: int = option(512 << 20, "Request bodies held at once, all together, per worker.", ge=1024)
    stream_uploads_bytes: int = option(
        1 << 20, "Forms (audio, images) above this go on to the replica while they arrive. 0: never.", ge=0
    )
    body_idle_timeout_s: float = option(30.0, "Seconds between two pieces of a request's body.", gt=0)
    body_timeout_s: float = option(600.0, "Seconds a request's body may take in all.", gt=0)
    max_connections: int = option(4096, "Client connections per worker.", ge=1)
    max_endpoints: int = option(1024, "Replicas the router can keep count of.", ge=1, le=65536, restart=True)
    forward_headers: CommaList = option((), "Further request headers that are passed on to replicas.")
    replica_keys: dict[str, Path] = option(
        {},
        "Files (mode 0600) with replicas' own API keys, by the label in a replica's record, its name, or a pattern of "
        "either; each is sent to those replicas only, instead of the client's.",
        flags=(),
    )
    replica_ca_file: Path | None = option(
        None,
        "PEM file of the CAs, or of single certificates (pinning), that replicas on https are checked against; unset: "
        "the system's CAs.",
    )
    replica_tls_verify: bool = option(
        True, "Check certificates and names of replicas on https; off: whoever is in between can read everything."
    )
    cors_origins: CommaList = option(
        (),
        "Origins (scheme://host:port) whose pages may call the router from a browser; `*` allows any, without credentials.",
    )
    api_keys_file: Path | None = option(
        None, "File (mode 0600) of API keys; with it every request needs one, and clients' own are not forwarded."
    )
    registry_keys: bool = option(
        False,
        "Take the registry's API keys as well (svcctl keys); with it every request needs a key. The file's stay and win.",
        restart=True,
    )
    limits_fail_closed: bool = option(
        False,
        "While no registry answers, refuse requests of keys that it limits (503), rather than go on with this router's share.",
        restart=True,
    )
    share_port: int = option(
        0, "Port where other routers of these replicas hear what is placed here; 0: none.", ge=0, le=65535, restart=True
    )
    share_with: CommaList = option(
        (),
        "URLs of the routers of the same replicas, each with its share_port; this one's own may be among them.",
        restart=True,
    )
    share_token_file: Path | None = option(
        None, "File (mode 0600) with the token that routers show each other, the same for all of them.", restart=True
    )
    max_in_flight: int = option(
        0, "Requests at once per replica that does not say (metadata.max_concurrency); 0 sets no limit.", ge=0
    )
    queue_limit: int = option(256, "Requests that may wait per model and worker for a replica with room.", ge=0)
    queue_timeout_s: float = option(30.0, "Seconds a request may wait for a replica with room.", gt=0)
    hold_limit: int = option(
        2048, "Requests that may wait per model and worker for a deployment's first replica to start.", ge=0
    )
    hold_s: float = option(
        60.0,
        "Seconds a request waits for a deployment's replica to start, before a 503 with the time that is left; streams, "
        "which are told how it goes, wait for first_byte_timeout_s.",
        gt=0,
    )
    sse_keepalive_s: float = option(
        15.0,
        "Seconds of silence after which a stream gets a comment, waiting or between two events; 0 sends none.",
        ge=0,
    )
    access_log_sample: float = option(0.01, "Share of requests that get a line in the access log.", ge=0, le=1)
    served_by: bool = option(False, "Tell clients which replica answered (X-Served-By).")
    compiled: bool = option(True, "Run the data plane compiled, where that was done at installation.")
    drain_timeout_s: float = option(
        30.0,
        "Seconds that requests under way may take after SIGTERM.",
        flags=["--drain-timeout"],
        was=["drain_timeout"],
        ge=0,
    )
    leave_s: float = option(
        0.0,
        "Seconds after SIGTERM in which requests are still taken and /ready answers 503, for balancers that look there.",
        ge=0,
        le=600,
    )
    expose_replica_api: bool = option(
        False, "Pass /api/v1/* on to the registry; with API keys, for admin keys only.", restart=True
    )
    replica_api_token_file: Path | None = option(
        None,
        "File (mode 0600) with the registry's admin token, for calls of /api/v1/* that an API key let in.",
        restart=True,
    )
    insecure_no_auth: bool = option(False, "Listen beyond loopback without API keys.")

    @model_validator(mode="before")
    @classmethod
    def _static_services_alone(cls, data: Any) -> Any:
        """Who has static services and names no registry follows none, as with the ancestors' router."""
        if isinstance(data, dict) and data.get("static_services") and "registry_url" not in data:
            return {**data, "registry_url": ()}
        return data

    @field_validator("policy")
    @classmethod
    def _is_policy(cls, policy: str) -> str:
        if policy not in POLICIES and policy not in RETIRED:
            raise ValueError(f"must be one of {', '.join(POLICIES)}")
        return policy

    @field_validator("strip_prefixes")
    @classmethod
    def _is_prefix(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_PREFIX.fullmatch(prefix) for prefix in prefixes):
            raise ValueError("each must begin with '/', not end with it, and hold letters, digits, '.', '_', '-', '/'")
        return prefixes

    @field_validator("cors_origins")
    @classmethod
    def _is_origin(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if origins != ("*",) and not all(_ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError(
                "each must be scheme://host or scheme://host:port in lower case, without a path; or only '*'"
            )
        return origins

    @field_validator("models")
    @classmethod
    def _leads_somewhere(cls, models: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        wrong = faults_of_rules({name: _rule(entry) for name, entry in models.items()})
        if wrong:
            raise ValueError("; ".join(wrong))
        return models

    def retired(self) -> dict[str, str]:
        """Policies that are the router's no more, besides its base's."""
        policies = {"policy": self.policy, **{f"models.{name}.policy": one.policy for name, one in self.models.items()}}
        return super().retired() | {
            name: f"{policy!r} is no policy of the router any more, {RETIRED[policy]!r} takes its place: write that"
            for name, policy in policies.items()
            if policy in RETIRED
        }

    @property
    def shares(self) -> bool:
        """True when other routers are told of placements, or heard."""
        return bool(self.share_port or self.share_with)

    @property
    def wants_keys(self) -> bool:
        """True when a request needs a key."""
        return self.api_keys_file is not None or self.registry_keys

    def model_rules(self) -> ModelRules:
        """What is set per model, as the workers use it."""
        rules = {name: _rule(entry) for name, entry in self.models.items()}
        return ModelRules(RETIRED.get(self.policy, self.policy), rules)


def _rule(entry: ModelSettings) -> ModelRule:
    policy = RETIRED.get(entry.policy, entry.policy) if entry.policy is not None else None
    changes = entry.parameters
    return ModelRule(
        policy=policy,
        split=entry.split,
        fallbacks=entry.fallbacks,
        parameters=parameters(changes.defaults, changes.forced, changes.removed),
        messages=entry.messages,
        rescue=entry.rescue,
        hedge=entry.hedge,
        ask_usage=entry.ask_usage,
    )


def read_api_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a key file.

    Raises:
        SettingsError: Others can read it, or an entry is wrong; names the file, the entry and the field.
    """
    content = read_file(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise SettingsError(f"{path}: others can read it; run: chmod 600 {path}")
    try:
        keys = msgspec.convert(content, KeyFile).keys
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path}: {error}") from error
    wrong = faults(keys)
    if wrong:
        raise SettingsError("\n".join(f"{path}: {line}" for line in wrong))
    return keys


def read_replica_keys(settings: RouterSettings) -> dict[str, str]:
    """What replicas want to see in `Authorization`, by label, name or pattern.

    Raises:
        ConfigurationError: A file is missing, readable by others, or holds no key.
    """
    return {pattern: read_credential(path) for pattern, path in settings.replica_keys.items()}
