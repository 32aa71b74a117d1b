"""What a command is given: its arguments, where the services are, and where its words go."""

from __future__ import annotations  # types of what is imported late

from argparse import Namespace
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.exits import ConfigurationError
from common.http.access import read_token
from ctl import places
from ctl.api import Api, Place, connect, tls_files
from ctl.codes import Code
from ctl.problem import Problem
from ctl.secret import read_secret

if TYPE_CHECKING:
    from common.http.tls import TlsFiles
    from ctl.output import Output


@dataclass(frozen=True, slots=True)
class Call:
    """One run of one command."""

    args: Namespace
    out: Output
    env: Mapping[str, str]

    @property
    def registry(self) -> Place:
        """The registry, with the operator's token."""
        return Place("the registry", _urls(places.registry_url(self.args)), "--registry-url", self._token())

    @property
    def api(self) -> Place:
        """Who serves `/api/v1`."""
        return Place("the replica API", _urls(places.api_url(self.args)), "--api-url", self._token())

    @property
    def router(self) -> Place:
        """The router, with its own API key: the registry's token is never sent where it may be passed on."""
        file = self.args.key_file
        key = read_secret(Path(file)) if file else None
        return Place("the router", _urls(places.router_url(self.args)), "--router-url", key, "--key-file")

    @property
    def state_dir(self) -> Path:
        """Where `up` keeps what it started."""
        return places.state_dir(self.args)

    @property
    def tls(self) -> TlsFiles:
        """Whom we believe on https, and what we show."""
        return tls_files(self.args.tls_ca_file, self.args.tls_cert_file, self.args.tls_key_file)

    def connect(self) -> AbstractAsyncContextManager[Api]:
        """An `Api` with a session of its own."""
        return connect(self.tls)

    def _token(self) -> str | None:
        try:
            return read_token(Path(self.args.token_file)) if self.args.token_file else None
        except ConfigurationError as error:
            raise Problem(str(error), code=Code.CONFIG) from error


def _urls(text: str) -> tuple[str, ...]:
    urls = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    wrong = next((url for url in urls if not url.startswith(("http://", "https://"))), None if urls else text)
    if wrong is not None:
        raise Problem(f"{wrong!r} is no address", hint="write http://HOST:PORT", code=Code.USAGE)
    return urls
