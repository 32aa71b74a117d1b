"""The router's nouns, shared by its rooms. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from common.discovery.plan import Plan, plan_of
from common.wire.address import authority
from common.wire.base import ModelObject
from common.wire.deployment import DEPLOYMENT_KEY
from common.wire.hints import Hints, hints_of
from common.wire.record import ServiceRecord

WEIGHT_LIMIT = 1000


class Eligibility(StrEnum):
    """How much the master trusts an endpoint."""

    FRESH = "fresh"
    """Registered, healthy by its lease, and not failing our own probe."""
    SUSPECT = "suspect"
    """Its lease is stale or its record vanished, but our own probe passes: used when no fresh one is left (D4)."""
    DOWN = "down"
    """Not to be used: our probe fails, or it is not running."""
    DRAINING = "draining"
    """Finishes what it has; gets nothing new (D28)."""


ABLE = (Eligibility.FRESH, Eligibility.SUSPECT)
"""Who may get something new."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The router's view of one replica; immutable, replaced whole when anything changes.

    `id` is unique per life of a replica (name and generation), so that counters and affinity never cross a
    redeployment (D27). `slot` is its row on the counters of shared counters. `api_prefix` is `/v1` or empty when the
    replica serves only that form of the paths, None when it is not known.
    """

    id: str
    name: str
    host: str
    port: int
    slot: int
    weight: float = 1.0
    models: tuple[str, ...] = ()
    cache_type: str | None = None
    api_prefix: str | None = None
    eligibility: Eligibility = Eligibility.FRESH
    limit: int = 0
    """Requests at once; 0 for no limit."""
    end_marked: bool | None = None
    """Whether the engine ends its streams with their path's mark (`metadata.stream_end_mark`); None when it does not say."""
    unix_path: str | None = None
    tls: bool = False
    base_path: str = ""
    """What goes before every path: empty, or `/team-a`."""
    authorization: str | None = field(default=None, repr=False)
    """What the replica wants to see in that header instead of the client's; a secret."""
    loadable: tuple[str, ...] = ()
    """Adapters that its babysitter loads when somebody asks for one."""
    serves: tuple[str, ...] | None = None
    """The calls that it answers (`serves.py`); None where nothing is known of that."""
    messages: bool | None = None
    """Whether it has Anthropic's `/v1/messages` itself; None where nothing is known of that."""
    waiting: int | None = None
    """Requests that wait inside the engine, by its latest report; None when it does not say."""
    slow_start_s: float | None = None
    """How long it begins with less than its weight (`policy/slow_start.py`); None leaves it to the router's setting."""
    continues: tuple[str, ...] = ()
    """The operations that it can go on with in the middle of an answer (`streams/kinship.py`)."""
    lineages: dict[str, str] = field(default_factory=dict, hash=False)
    """By model what tells its revision and tokenizer, where anything does."""
    hands_over: bool = False
    """It is drained, and its streams are to go on elsewhere, where that can be."""
    absent: bool = False
    """It is a deployment's, and says itself that it starts, sleeps or has ended: not even a last resort."""

    @property
    def authority(self) -> str:
        """`host:port` for the Host header."""
        return authority(self.host, self.port)


class Facts(msgspec.Struct, frozen=True):
    """What routing may know of a request.

    `text_bytes` is the size of the request's text, or None when nobody needed it. `affinity` is what ties requests
    together (docs/contract.md 2): `prompt_cache_key`, else forwarded address and agent; None for neither. `prompt_bytes` is
    the size of the prompt as it stands in the body and `blocks` its hashed beginning (`policy/blocks.py`), for policies
    that read prompts; for others it is the body's size, which is nearly that.
    """

    model: str | None = None
    stream: bool = False
    choices: int = 1
    """How many choices its stream is to have, by `n` and the number of prompts."""
    text_bytes: int | None = None
    affinity: str | None = None
    prompt_bytes: int = 0
    blocks: tuple[int, ...] = ()
    session: str | None = None
    """What the policy `session` ties together; only where that policy is used."""
    policy: str | None = None
    """The policy that the client asked for, where it may."""
    previous_response: str | None = None
    """The response that it goes on from (`previous_response_id`)."""


@dataclass(frozen=True, slots=True)
class Table:
    """All endpoints at one moment, as the workers get them from the master."""

    version: int
    endpoints: tuple[Endpoint, ...] = ()
    by_model: dict[str, tuple[Endpoint, ...]] = field(default_factory=dict)
    fresh: dict[str | None, tuple[Endpoint, ...]] = field(default_factory=dict)
    """The fresh ones by model, and all of them under None: the candidates of nearly every request."""
    loadable: dict[str, tuple[Endpoint, ...]] = field(default_factory=dict)
    """By adapter: those that are well and may load it; nearly always empty."""

    @classmethod
    def of(cls, version: int, endpoints: tuple[Endpoint, ...]) -> "Table":
        """Index `endpoints` by model; the ones that are down are kept for the panic rule."""
        by_model: dict[str, list[Endpoint]] = {}
        for endpoint in endpoints:
            for model in endpoint.models:
                by_model.setdefault(model, []).append(endpoint)
        fresh: dict[str | None, tuple[Endpoint, ...]] = {
            model: tuple(one for one in those if one.eligibility is Eligibility.FRESH)
            for model, those in by_model.items()
        }
        fresh[None] = tuple(one for one in endpoints if one.eligibility is Eligibility.FRESH)
        able: dict[str, tuple[Endpoint, ...]] = {}
        for endpoint in endpoints:
            if endpoint.loadable and endpoint.eligibility in ABLE:
                for adapter in endpoint.loadable:
                    able[adapter] = (*able.get(adapter, ()), endpoint)
        return cls(version, endpoints, {model: tuple(those) for model, those in by_model.items()}, fresh, able)


@dataclass(slots=True)
class Replica:
    """What the master knows of one replica: its record, where it came from, and what our own probe says."""

    record: ServiceRecord
    generation: str
    leased: bool
    static: bool = False
    authorization: str | None = field(default=None, repr=False)
    """What it wants to see in that header; a secret."""
    absent_since: float | None = None
    """Monotonic time since when the registry no longer lists it; the grace period counts from here."""
    probe_failures: int = 0
    probe_successes: int = 0
    probed_ok: bool | None = None
    doubted: bool = False
    """Our probe failed, and has not passed twice since."""
    learned_models: tuple[str, ...] = ()
    learned_prefix: str | None = None
    learned_objects: Mapping[str, ModelObject] = field(default_factory=dict)
    """What the server itself says of its models, by id."""
    problem: str | None = None
    """What our latest probe found wrong, in plain words."""
    learned_calls: tuple[str, ...] | None = None
    """What it tells of its calls: none when it says nothing, None until it was asked."""
    loaded: tuple[str, ...] = ()
    """Adapters that its babysitter said it had loaded; its next record says so itself."""
    load_refused: dict[str, float] = field(default_factory=dict)
    """Adapters that it could not load, and until when (monotonic) it is not asked for them again."""
    slot: int = -1
    row: Endpoint | None = None
    """The endpoint that it is in the table, made when it is asked for; to be forgotten when anything here changes."""
    hints: Hints = field(init=False)
    """What the record's metadata says, read once."""

    def __post_init__(self) -> None:
        self.hints = hints_of(self.record.metadata)

    @property
    def name(self) -> str:
        """Its name in the registry or the static file."""
        return self.record.name

    @property
    def plan(self) -> Plan:
        """How it is reached, by probes and by requests."""
        record = self.record
        return plan_of(record.url, record.host, record.port, authorization=self.authorization)

    @property
    def id(self) -> str:
        """Of this life of it, as an endpoint."""
        return f"{self.name}@{self.generation}"

    @property
    def models(self) -> tuple[str, ...]:
        """Model ids by the record, else as our probe learned them; of a copied list, what was learned later wins."""
        declared = self.declared_models
        models = self.learned_models if not declared or (self.is_copied and self.learned_models) else declared
        return models if not self.loaded else tuple(dict.fromkeys((*models, *self.loaded)))

    @property
    def babysitter(self) -> Plan | None:
        """How its babysitter is reached: at the replica's own host, with the replica's key, which keeps its https."""
        plan = self.plan
        found = plan_of(self.hints.babysitter_url or "", "", 0, authorization=plan.authorization)
        return found if found.host == plan.host and (found.tls or not plan.tls) else None

    @property
    def loadable(self) -> tuple[str, ...]:
        """Adapters that it may be asked to load."""
        if not self.hints.loadable or self.babysitter is None:
            return ()
        names = (name for name in self.hints.loadable if isinstance(name, str))
        return tuple(name for name in names if name not in self.models and name not in self.load_refused)

    @property
    def declared_models(self) -> tuple[str, ...]:
        """Model ids by the record."""
        return tuple(model for model in self.hints.models or () if isinstance(model, str))

    @property
    def model_objects(self) -> Mapping[str, ModelObject]:
        """What its server says of its models, by id: by the record, else by its report, else as our probe learned it."""
        report = self.hints.replica
        listed = self.hints.models_list or (report.models_list if report is not None else None) or ()
        by_id = {item["id"]: item for item in listed if isinstance(item, dict) and isinstance(item.get("id"), str)}
        return dict(self.learned_objects) | by_id

    @property
    def is_watched(self) -> bool:
        """True when a babysitter of ours asks the server for its models all the time, and its record follows."""
        return self.record.instance_id is not None and bool(self.declared_models)

    @property
    def is_copied(self) -> bool:
        """True when the record's models are what somebody read off the server once: babysitters of the old kind do so.

        They write the model objects as well, which nobody does who declares names by hand.
        """
        return not self.static and self.record.instance_id is None and self.hints.models_list is not None

    @property
    def weight(self) -> float:
        """A usable weight from the record, its metadata, or 1: never negative, at most 1000."""
        for weight in (self.record.weight, self.hints.weight):
            if weight is not None and 0 <= weight <= WEIGHT_LIMIT:
                return float(weight)
        return 1.0

    @property
    def absent(self) -> bool:
        """True when a deployment's replica says itself that it does not run: whoever asks for its model waits for it."""
        return self.record.status != "running" and self.deployment is not None

    @property
    def deployment(self) -> str | None:
        """The deployment that it belongs to."""
        name = (self.record.metadata or {}).get(DEPLOYMENT_KEY)
        return name if isinstance(name, str) else None

    @property
    def eligibility(self) -> Eligibility:
        """What the registry's verdict and ours add up to."""
        if self.record.draining:
            return Eligibility.DRAINING
        # What a registry remembers of before a reboot may never have come back: the benefit of doubt ends with the first look.
        never_well = self.probed_ok is None and self.probe_failures > 0
        if self.record.status != "running" or self.probed_ok is False or never_well:
            return Eligibility.DOWN
        if self.leased:
            return Eligibility.FRESH
        return Eligibility.SUSPECT if self.probed_ok else Eligibility.DOWN
