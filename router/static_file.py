"""The static services file: replicas that are always in the table. One bad entry does not keep the others out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from common.discovery.plan import plan_of
from common.exits import ConfigurationError
from common.http.access import read_credential
from common.names import is_host, is_service_name
from common.nulls import without_nulls
from common.settings import Layer, Settings, SettingsError, build, read_file
from common.wire.base import JsonObject
from common.wire.record import ServiceRecord


class StaticService(Settings):
    """One entry. `url` may take the place of `host` and `port`, and say scheme and base path as well."""

    name: str
    host: str = ""
    port: int = Field(0, ge=1, le=65535)
    url: str | None = None
    weight: float | None = Field(None, ge=0, le=1000)
    """None leaves it to `metadata.weight`."""
    metadata: JsonObject = Field(default_factory=dict)
    api_key_file: Path | None = None

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        if not is_service_name(name):
            raise ValueError("must be letters, digits, '.', '_' or '-', at most 128, the first a letter or a digit")
        return name

    @field_validator("host")
    @classmethod
    def _reachable(cls, host: str) -> str:
        if not is_host(host):
            raise ValueError("must be a host name or an IP address")
        return host

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None and not plan_of(url, "", 0).host:
            raise ValueError("must be http(s)://host[:port][/path], without user, query or odd characters")
        return url

    @model_validator(mode="after")
    def _is_somewhere(self) -> "StaticService":
        if self.url is None and not (self.host and self.port):
            raise ValueError("needs 'host' and 'port', or a 'url'")
        return self

    def record(self) -> ServiceRecord:
        """As a record of a registry would have it."""
        default = DEFAULT_PORTS[self.url.partition(":")[0].lower()] if self.url else 0
        plan = plan_of(self.url or "", self.host, self.port or default)
        return ServiceRecord(
            name=self.name,
            host=plan.host,
            port=plan.port,
            url=self.url or plan.url,
            weight=self.weight,
            metadata=self.metadata,
        )


DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class StaticServices:
    """What a file says.

    Args:
        services: The good entries, as records.
        keys: What those with an `api_key_file` want to see in `Authorization`, by name.
        faults: One line for each entry that is left out.
        faulty: Names of those entries, where they can be read: what was known of them may stay.
    """

    services: tuple[ServiceRecord, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    faults: tuple[str, ...] = ()
    faulty: frozenset[str] = frozenset()


def read_static_services(path: Path) -> StaticServices:
    """The services of a static file: a JSON list, or that list under `services` or `static_services.services`.

    Raises:
        SettingsError: It cannot be read, or has no list.
    """
    content = read_file(path)
    if isinstance(content, dict):
        inner = content.get("static_services", content)
        content = inner.get("services") if isinstance(inner, dict) else None
    if not isinstance(content, list):
        raise SettingsError(f"{path}: needs a list of services, or one under 'services'")
    services: dict[str, ServiceRecord] = {}
    keys: dict[str, str] = {}
    faults: list[str] = []
    faulty: set[str] = set()
    for number, entry in enumerate(content, start=1):
        name = entry.get("name") if isinstance(entry, dict) else None
        where = f"{path}: entry {number}" + (f" ({name})" if isinstance(name, str) else "")
        try:
            if not isinstance(entry, dict):
                raise SettingsError(f"{where}: must be a table, not {type(entry).__name__}")
            service = build(StaticService, [Layer(where, without_nulls(StaticService, entry), {})])
            if service.name in services:
                raise SettingsError(f"{where}: the name {service.name!r} appears twice")
            if service.api_key_file is not None:
                keys[service.name] = read_credential(service.api_key_file)
            services[service.name] = service.record()
        except (SettingsError, ConfigurationError) as error:
            text = str(error)
            faults.append(text if text.startswith(where) else f"{where}: {text}")
            if isinstance(name, str) and name not in services:
                faulty.add(name)
    return StaticServices(tuple(services.values()), keys, tuple(faults), frozenset(faulty))
