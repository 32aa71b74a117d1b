"""From the settings to a store."""

import ssl
from pathlib import Path

from common.exits import ConfigurationError
from common.http.access import read_password
from common.http.tls import client_context, read_ca
from common.names import is_host
from common.wire.address import url as url_of
from registry.core.store import Store
from registry.settings import RegistrySettings
from registry.store.etcd import EtcdStore
from registry.store.gateway import Login
from registry.store.memory import MemoryStore
from registry.store.sqlite import SqliteStore

FORMS = "sqlite:///PATH, memory://, etcd://HOST:PORT,HOST:PORT or etcds://HOST:PORT,HOST:PORT (TLS)"


def make_store(settings: RegistrySettings) -> Store:
    """The store that the settings name; by default the embedded one in the data directory.

    `sqlite:///x/y` is the relative path x/y and `sqlite:////x/y` the absolute /x/y, as elsewhere in Python.

    Raises:
        ConfigurationError: `store` has none of the known forms, or what it needs cannot be read.
    """
    url = settings.store
    if url is None:
        return SqliteStore(settings.data_dir / "registry.sqlite3")
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "memory" and not rest:
        return MemoryStore()
    if separator and scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return SqliteStore(Path(rest[1:]))
    if separator and scheme in ("etcd", "etcds") and (endpoints := _endpoints(rest)):
        tls = _tls(settings, required=scheme == "etcds")
        urls = [url_of(host, port, scheme="http" if tls is None else "https") for host, port in endpoints]
        return EtcdStore(urls, tls=tls, login=_login(settings))
    raise ConfigurationError(f"--store {url}: not {FORMS}")


def _endpoints(text: str) -> list[tuple[str, int]]:
    """`host[:port],…` as host and port each; empty when one of them is no address."""
    endpoints = []
    for part in text.split(","):
        host, _, port = part.rpartition(":") if ":" in part.rpartition("]")[2] else (part, ":", "2379")
        if not is_host(host) or not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):  # noqa: PLR2004 - the last port
            return []
        endpoints.append((host, int(port)))
    return endpoints


def _tls(settings: RegistrySettings, *, required: bool) -> ssl.SSLContext | None:
    """What etcd's members are checked with, and our certificate where they want one; None without TLS."""
    if not required:
        for name in ("etcd_ca_file", "etcd_cert_file", "etcd_key_file"):
            if getattr(settings, name) is not None:
                raise ConfigurationError(f"{name} is for an etcd with TLS: set store to etcds://HOST:PORT")
        return None
    context = client_context(read_ca(settings.etcd_ca_file))
    if (settings.etcd_cert_file is None) is not (settings.etcd_key_file is None):
        raise ConfigurationError("etcd_cert_file and etcd_key_file need each other")
    if settings.etcd_cert_file is not None:
        try:
            context.load_cert_chain(settings.etcd_cert_file, settings.etcd_key_file, password="")
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise ConfigurationError(
                f"etcd_cert_file {settings.etcd_cert_file}, etcd_key_file {settings.etcd_key_file}: {error}"
            ) from error
    return context


def _login(settings: RegistrySettings) -> Login | None:
    """The user that etcd is told, with the password from its file."""
    if (settings.etcd_user is None) is not (settings.etcd_password_file is None):
        raise ConfigurationError("etcd_user and etcd_password_file need each other")
    if settings.etcd_user is None or settings.etcd_password_file is None:
        return None
    return Login(settings.etcd_user, read_password(settings.etcd_password_file))
