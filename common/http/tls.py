"""TLS: what a process shows others and whom it believes, read from files, judged before it is used, and taken anew.

A process has one certificate for all that it serves and all that it asks (`tls_cert_file`), unless it shows services another
one (`tls_client_cert_file`). Its private key is in its file and in memory, and nowhere else.
"""

import os
import ssl
import stat
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec

from common.atomic_file import read_bounded
from common.exits import ConfigurationError

PEM_LIMIT_BYTES = 4 << 20
SHUTDOWN_S = 2.0
"""How long the other side may take to say goodbye; asyncio's own 30 s would keep dead connections open."""
ALPN = ["http/1.1"]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files that settings name, each as the setting of its name with `tls_` before and `_file` after it."""

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None

    def __iter__(self) -> Iterator[Path | None]:
        """All of them, to be watched."""
        return (getattr(self, field.name) for field in fields(self))


class TlsMaterial(msgspec.Struct, frozen=True):
    """What the files hold, in PEM. A pair is a certificate with its chain, and its key.

    `pair` is what a listener shows (None: it speaks plain HTTP), `client_ca` whose certificates its clients have to show
    (None: they need none), `client_pair` what we show services, `ca` which services are believed besides the system's CAs
    (None: none), `expires_at` when `pair` ends, in epoch seconds.
    """

    pair: bytes | None = None
    client_ca: str | None = None
    client_pair: bytes | None = None
    ca: str | None = None
    expires_at: float | None = None

    def __repr__(self) -> str:
        """Without the keys."""
        return f"<TlsMaterial expires_at={self.expires_at}>"


NOTHING = TlsMaterial()


class Tls:
    """A process's TLS: the contexts in use, kept up to date.

    Raises:
        ConfigurationError: A file is of no use; the text names it.
    """

    def __init__(self, files: TlsFiles = TlsFiles()) -> None:
        self._files = files
        self.material = read_tls(files)
        self.server = server_context(self.material)
        """For connections that begin now; None: plain HTTP."""
        self._clients: weakref.WeakSet[ssl.SSLContext] = weakref.WeakSet()
        self.client = self.context(self.material.ca)
        """What services of ours are checked with: those of `tls_ca_file`, else the system's."""

    @property
    def scheme(self) -> str:
        """Of our own URL."""
        return "http" if self.server is None else "https"

    def context(self, ca: str | None, *, verify: bool = True) -> ssl.SSLContext:
        """A context for asking others, which `put` keeps up to date."""
        made = client_context(ca, verify=verify, shown=self.material)
        self._clients.add(made)
        return made

    def read(self) -> TlsMaterial:
        """The files as they are now. What was judged before is not judged again: it may have expired meanwhile.

        Raises:
            ConfigurationError: They cannot be used.
        """
        return read_tls(self._files, known=self.material)

    def put(self, material: TlsMaterial) -> None:
        """Put it in force for connections that begin from now on; a CA that asked services were believed by stays so."""
        if material == self.material:
            return
        for context in self._clients:
            _dress(context, material)
        self.material, self.server = material, server_context(material)


def read_tls(files: TlsFiles, known: TlsMaterial = NOTHING) -> TlsMaterial:
    """What the files hold, judged, but for the pairs of `known`.

    Raises:
        ConfigurationError: A file cannot be read, others can read a key, or a certificate is expired or not the key's.
    """
    pair, expires_at = _read_pair(files.cert, files.key, "tls", (known.pair, known.expires_at))
    if files.client_ca is not None and pair is None:
        raise ConfigurationError("tls_client_ca_file needs tls_cert_file and tls_key_file")
    client_pair, _ = _read_pair(files.client_cert, files.client_key, "tls_client", (known.client_pair, None))
    return TlsMaterial(pair, read_ca(files.client_ca), client_pair or pair, read_ca(files.ca), expires_at)


def read_ca(path: Path | None) -> str | None:
    """The certificates in `path`, in PEM; None for the system's.

    Raises:
        ConfigurationError: It cannot be read, or has no certificate.
    """
    if path is None:
        return None
    try:
        pem = read_bounded(path.resolve(), limit_bytes=PEM_LIMIT_BYTES).decode("ascii")
        client_context(pem)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise ConfigurationError(f"CA file {path}: {error}") from error
    return pem


def _read_pair(
    cert: Path | None, key: Path | None, name: str, known: tuple[bytes | None, float | None]
) -> tuple[bytes | None, float | None]:
    """Certificate and key as one PEM, and when the certificate ends."""
    if cert is None or key is None:
        if cert is not key:
            raise ConfigurationError(f"{name}_cert_file and {name}_key_file need each other")
        return None, None
    try:
        if stat.S_IMODE(key.stat().st_mode) & 0o077:
            raise ConfigurationError(f"{name}_key_file {key}: others can read it; run: chmod 600 {key}")
        # Resolved: certbot's and Kubernetes' files are links, which change when a certificate is renewed.
        certificates = read_bounded(cert.resolve(), limit_bytes=PEM_LIMIT_BYTES)
        pair = certificates + b"\n" + read_bounded(key.resolve(), limit_bytes=PEM_LIMIT_BYTES)
        if pair == known[0]:
            return known
        return pair, _expiry(pair, certificates.decode("ascii"), by_client=name == "tls_client")
    except ssl.SSLCertVerificationError as error:
        raise ConfigurationError(f"{name}_cert_file {cert}: {error.verify_message}") from error
    except (OSError, ValueError) as error:
        what = {"KEY_VALUES_MISMATCH": "the key is not the certificate's"}.get(getattr(error, "reason", None) or "")
        what = what or f"no certificate and key in PEM, without a passphrase ({error})"
        raise ConfigurationError(f"{name}_cert_file {cert} with {name}_key_file {key}: {what}") from error


def _expiry(pair: bytes, certificates: str, *, by_client: bool) -> float:
    """When a pair ends, in epoch seconds: asked of a handshake in memory, in which OpenSSL judges it as others will.

    Raises:
        ssl.SSLCertVerificationError: It has expired, is not valid yet, or is not for this purpose.
        ssl.SSLError: It is no pair.
    """
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    _load(client, pair)
    _load(server, pair)
    judge = server if by_client else client
    judge.verify_mode = ssl.CERT_REQUIRED
    judge.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it vouches for itself here
    judge.load_verify_locations(cadata=certificates)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True))
    for end in ends * 2:
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    shown = ends[by_client].getpeercert() or {}
    return float(ssl.cert_time_to_seconds(str(shown["notAfter"])))


def _load(context: ssl.SSLContext, pair: bytes) -> None:
    """Give a context a pair; by a file in memory, as `ssl` takes paths only, and a file on disk may change meanwhile."""
    descriptor = os.memfd_create("pair", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pair)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=b"")


def server_context(material: TlsMaterial) -> ssl.SSLContext | None:
    """What a listener greets clients with; None without a certificate."""
    if material.pair is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(ALPN)
    _load(context, material.pair)
    if material.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=material.client_ca)
        # A session that is resumed shows no certificate again: it would outlive its CA, or its own end.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
    return context


def client_context(ca: str | None, *, verify: bool = True, shown: TlsMaterial = NOTHING) -> ssl.SSLContext:
    """What a client checks servers with: their certificates and their names, unless `verify` is false.

    Args:
        ca: PEM of the CAs that are believed, and of single servers' certificates, which are believed alone (pinning);
            None for the system's CAs.
        verify: False believes anybody: what is sent may be read by whoever is in between.
        shown: Whose certificate servers are shown, and whose CAs are believed as well.

    Raises:
        ssl.SSLError: `ca` has no certificate.
    """
    if verify:
        context = ssl.create_default_context(cadata=ca)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    else:  # the system's CAs would take 20 ms to load, in a worker between two requests
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(ALPN)
    _dress(context, shown)
    return context


def _dress(context: ssl.SSLContext, material: TlsMaterial) -> None:
    if material.client_pair is not None:
        _load(context, material.client_pair)
    if material.ca is not None and context.verify_mode is not ssl.CERT_NONE:
        context.load_verify_locations(cadata=material.ca)
