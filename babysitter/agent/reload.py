"""What a running agent takes over from changed settings; the rest needs a restart.

Babysitters that run get changed settings too: they are started again, one by one, and adopt their servers.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from babysitter.agent.api import AgentContext
from babysitter.agent.launch_spec import LaunchSpec
from babysitter.agent.settings import AgentSettings
from common.http.access import read_token, require_guard


def files_of(settings: AgentSettings) -> Iterator[Path | None]:
    """Files that the settings name and that are read again."""
    yield settings.api_token_file
    yield settings.babysitter_config
    yield from settings.tls


def token_of(settings: AgentSettings) -> str | None:
    """The token that calls need.

    Raises:
        ConfigurationError: Its file is of no use, or the network would be served without one.
    """
    guarded = settings.api_token_file is not None
    require_guard("agent", settings.host, guarded=guarded, insecure=settings.insecure_no_auth)
    return read_token(settings.api_token_file) if settings.api_token_file else None


def apply(agent: AgentContext, make: Callable[[AgentSettings], LaunchSpec], settings: AgentSettings) -> None:
    """Put settings in force in an agent that runs: all of them or none. `make` makes their launch spec.

    Raises:
        SettingsError: The babysitters' file cannot be read.
        ConfigurationError: A token file is of no use, or a babysitter would refuse its settings.
    """
    token, launch_spec, material = token_of(settings), make(settings), agent.tls.read()
    agent.tls.put(material)
    agent.token = token
    agent.manager.reload(settings, launch_spec)
