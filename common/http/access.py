"""Who may ask: loopback by default, tokens from 0600 files, compared in constant time (docs/faults.md G1, G2)."""

import hmac
import ipaddress
import stat
from pathlib import Path

from common.atomic_file import read_bounded
from common.exits import ConfigurationError
from common.names import is_localhost

TOKEN_LEAST_BYTES = 32
_TOKEN_FILE_LIMIT_BYTES = 4096


def is_loopback(host: str) -> bool:
    """True when a bind to `host` can be reached from this machine only."""
    if is_localhost(host):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_guard(what: str, host: str, *, guarded: bool, insecure: bool) -> None:
    """Refuse to serve the network without tokens.

    Raises:
        ConfigurationError: `host` is not loopback, no token file is set, and `--insecure-no-auth` is not given.
    """
    if is_loopback(host) or guarded or insecure:
        return
    raise ConfigurationError(
        f"{what}: refusing to listen on {host} without tokens; "
        "give a token file, listen on 127.0.0.1, or accept the risk with --insecure-no-auth"
    )


def read_token(path: Path) -> str:
    """The token in `path`: one line, at least 32 bytes, in a file that only its owner can read.

    Raises:
        ConfigurationError: The file is missing, readable by others, or its token is too short.
    """
    needs = (
        f"one token of at least {TOKEN_LEAST_BYTES} printable characters; make one with: openssl rand -hex 32 > {path}"
    )
    text = _read_private(path, "token file", needs)
    if len(text) < TOKEN_LEAST_BYTES or " " in text:
        raise ConfigurationError(f"token file {path}: needs {needs}")
    return text


def read_credential(path: Path) -> str:
    """What a service wants to see in `Authorization`, as the header's whole value: a key for `Bearer`, or `SCHEME VALUE`.

    Raises:
        ConfigurationError: The file is missing, readable by others, or holds no single line.
    """
    text = _read_private(path, "key file", "one line: the key, or the whole value of Authorization")
    return text if " " in text else f"Bearer {text}"


def read_password(path: Path) -> str:
    """The password in `path`: one line, in a file that only its owner can read.

    Raises:
        ConfigurationError: The file is missing, readable by others, or empty.
    """
    return _read_private(path, "password file", "one line: the password")


def _read_private(path: Path, what: str, needs: str) -> str:
    """The one printable line of a file that only its owner can read."""
    try:
        mode = path.stat().st_mode
        text = read_bounded(path, limit_bytes=_TOKEN_FILE_LIMIT_BYTES).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{what} {path}: {error}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigurationError(f"{what} {path}: others can read it; run: chmod 600 {path}")
    if not text or not text.isprintable():
        raise ConfigurationError(f"{what} {path}: needs {needs}")
    return text


def bearer_matches(authorization: str | None, token: str) -> bool:
    """True when the `Authorization` header carries `token`; takes the same time whether it does or not."""
    scheme, _, token_sent = (authorization or "").partition(" ")
    same = hmac.compare_digest(token_sent.encode("utf-8", "surrogateescape"), token.encode())
    return same and scheme.lower() == "bearer"
