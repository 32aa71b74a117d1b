"""From `--store` to a store."""

from pathlib import Path

from common.service import ConfigurationError
from registry.store import Store
from registry.store.memory import MemoryStore
from registry.store.sqlite import SqliteStore

FORMS = "sqlite:///PATH or memory://"


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
    raise ConfigurationError(f"--store {url}: not {FORMS}")
