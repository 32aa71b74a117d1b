"""From `--store` to a store."""

from pathlib import Path

from common.exits import ConfigurationError
from common.names import is_host
from registry.core.store import Store
from registry.store.etcd import EtcdStore
from registry.store.memory import MemoryStore
from registry.store.sqlite import SqliteStore

FORMS = "sqlite:///PATH, memory:// or etcd://HOST:PORT,HOST:PORT"


def make_store(url: str | None, data_dir: Path) -> Store:
    """The store that `url` names; None is the embedded default in `data_dir`.

    `sqlite:///x/y` is the relative path x/y and `sqlite:////x/y` the absolute /x/y, as elsewhere in Python.

    Raises:
        ConfigurationError: `url` has none of the known forms.
    """
    if url is None:
        return SqliteStore(data_dir / "registry.sqlite3")
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "memory" and not rest:
        return MemoryStore()
    if separator and scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return SqliteStore(Path(rest[1:]))
    if separator and scheme == "etcd" and (endpoints := _endpoints(rest)):
        return EtcdStore(endpoints)
    raise ConfigurationError(f"--store {url}: not {FORMS}")


def _endpoints(text: str) -> list[str]:
    """`host[:port],…` as `host:port` each; empty when one of them is no address."""
    found = []
    for part in text.split(","):
        host, _, port = part.rpartition(":") if ":" in part else (part, ":", "2379")
        if not is_host(host) or not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):  # noqa: PLR2004 - the last port
            return []
        found.append(f"{host}:{port}")
    return found
