"""How every process of the suite starts and ends: settings, logs, event loop, exit code. Called by `__main__` only."""

import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import structlog

from common import ending, log, systemd
from common.exits import ConfigurationError, Exit
from common.http.tls import TlsFiles
from common.settings import Settings, SettingsError, load, option, unknown_variables
from common.tasks import TaskFailed

logger = structlog.get_logger(__name__)


LOG_LEVELS = r"^(?i:debug|info|warn|warning|error|critical|fatal)$"
"""The standard library's names, which the ancestors' variables hold."""


class TlsSettings(Settings):
    """Certificates: the same names for every service, and one variable for all of them."""

    tls_cert_file: Path | None = option(
        None,
        "PEM file of the certificate, with its chain, that is shown to clients, and to services that we ask; unset: plain "
        "HTTP.",
        env=("SVC_TLS_CERT_FILE",),
        restart=True,
    )
    tls_key_file: Path | None = option(
        None, "PEM file (mode 0600) of that certificate's key.", env=("SVC_TLS_KEY_FILE",), restart=True
    )
    tls_client_ca_file: Path | None = option(
        None,
        "PEM file of CAs; with it clients have to show a certificate that one of them signed.",
        env=("SVC_TLS_CLIENT_CA_FILE",),
        restart=True,
    )
    tls_ca_file: Path | None = option(
        None,
        "PEM file of the CAs that services on https are checked against; unset: the system's.",
        env=("SVC_TLS_CA_FILE",),
        restart=True,
    )
    tls_client_cert_file: Path | None = option(
        None,
        "PEM file of another certificate for services that we ask; unset: `tls_cert_file`.",
        env=("SVC_TLS_CLIENT_CERT_FILE",),
        restart=True,
    )
    tls_client_key_file: Path | None = option(
        None, "PEM file (mode 0600) of that one's key.", env=("SVC_TLS_CLIENT_KEY_FILE",), restart=True
    )

    @property
    def tls(self) -> TlsFiles:
        """All of them."""
        return TlsFiles(**{field.name: getattr(self, f"tls_{field.name}_file") for field in fields(TlsFiles)})


class ServiceSettings(TlsSettings):
    """What every service takes."""

    log_level: str = option(
        "INFO",
        "Least level of the lines logged: debug, info, warning, error or critical.",
        pattern=LOG_LEVELS,
        restart=True,
    )
    log_json: bool | None = option(None, "Log JSON lines; unset means: unless at a terminal.", restart=True)


Chosen = TypeVar("Chosen", bound=ServiceSettings)


def run(  # a process's whole life, in the order it happens
    service: str,
    model: type[Chosen],
    serve: Callable[[Chosen], Awaitable[None]],
    *,
    argv: list[str] | None = None,
) -> int:
    """Load settings, set up logging, run `serve(settings)` on uvloop; returns the exit code."""
    try:
        settings = read_settings(service, model, argv)
    except SettingsError as error:
        return complain(service, error)
    return run_loaded(service, settings, serve)


def read_settings(service: str, model: type[Chosen], argv: list[str] | None = None) -> Chosen:
    """The settings of `service` as flags, environment and file say now; also for reading them again.

    Raises:
        SettingsError: They cannot be used.
    """
    return load(
        model,
        prog=f"svc-{service}",
        env_prefix=env_prefix(service),
        argv=sys.argv[1:] if argv is None else argv,
        env=os.environ,
    )


def env_prefix(service: str) -> str:
    """What the variables of a service's settings begin with."""
    return f"SVC_{service.upper()}_"


def run_loaded(service: str, settings: Chosen, serve: Callable[[Chosen], Awaitable[None]]) -> int:
    """Like `run`, for a process that has read its settings by itself."""
    log.setup(service, level=settings.log_level, json=settings.log_json)

    logger.debug("service.settings", **changed_settings(settings))
    for name, meant in unknown_variables(type(settings), env_prefix(service), os.environ).items():
        logger.warning("settings.unknown_variable", variable=name, did_you_mean=meant)
    warn_of_retired(settings)

    async def body() -> int:
        try:
            await serve(settings)
        except ConfigurationError as error:
            return complain(service, error)
        except TaskFailed as error:
            logger.error("service.failed", reason=str(error))
            return Exit.SOFTWARE
        return Exit.OK

    try:
        return ending.run(body)
    except KeyboardInterrupt:
        return Exit.OK


def warn_of_retired(settings: Settings) -> None:
    """Log what is set and no longer means anything: it does not keep a service from starting."""
    for name, remedy in settings.retired().items():
        logger.warning("settings.retired", setting=name, remedy=remedy)


def changed_settings(settings: Settings) -> dict[str, object]:
    """The top-level settings that are not the default, for the log; tables may hold anything and are only named."""
    shown: dict[str, object] = {}
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        if value != info.get_default(call_default_factory=True, validated_data={}):
            parts = value if isinstance(value, tuple) else (value,)
            plain = all(isinstance(part, str | int | float | Path | None) for part in parts)
            shown[name] = str(value) if isinstance(value, Path) else value if plain else "…"
    return shown


def complain(service: str, error: Exception) -> int:
    """Tell the operator what is wrong, one line per fault, and return exit code 78."""
    priority = systemd.priority("error") if systemd.has_journal() else ""
    for line in str(error).splitlines():
        sys.stderr.write(f"{priority}svc-{service}: error: {line}\n")
    return Exit.CONFIG
