"""What every service takes: levels by the names that people and the ancestors' files use, and what debug then says."""

import logging
from pathlib import Path

import pytest

from babysitter.agent.settings import AgentSettings
from common.service import ServiceSettings, changed_settings
from common.settings import SettingsError, load
from registry.settings import RegistrySettings

NAMES = ("DEBUG", "info", "Warn", "WARNING", "error", "CRITICAL", "fatal")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", [ServiceSettings, AgentSettings])
def test_level_may_have_any_name_of_the_standard_library_W42(model: type[ServiceSettings], name: str) -> None:
    variable = "LOG_LEVEL" if model is AgentSettings else "SVC_X_LOG_LEVEL"
    settings = load(model, prog="x", env_prefix="SVC_X_", argv=[], env={variable: name})
    assert settings.log_level.upper() in logging.getLevelNamesMapping()


def test_level_that_is_none_is_named() -> None:
    with pytest.raises(SettingsError, match=r"LOG_LEVEL.*LOUD"):
        load(ServiceSettings, prog="x", env_prefix="SVC_X_", argv=[], env={"SVC_X_LOG_LEVEL": "LOUD"})


def test_debug_tells_settings_that_are_not_the_default_W42() -> None:
    changed = RegistrySettings(port=1, data_dir=Path("/x"), allowed_hosts=("a", "b"))
    assert changed_settings(changed) == {"port": 1, "data_dir": "/x", "allowed_hosts": ("a", "b")}
