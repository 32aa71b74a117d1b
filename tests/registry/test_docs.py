"""The registry's page says what the code does."""

import re
from pathlib import Path

from common.settings import needing_restart
from registry.core.expiry import LEGACY_TTL_S, ExpiryRules
from registry.probes.schedule import FALL, RISE
from registry.settings import RegistrySettings

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "registry.md").read_text()


def test_the_numbers_of_the_page_are_those_of_the_rules() -> None:
    rules = ExpiryRules()
    assert f"{LEGACY_TTL_S:g} s where nothing was said" in PAGE
    assert f"more than {rules.removal_factor:g} leases" in PAGE
    assert f"more than {rules.preserve_share:.0%}".replace("%", " %") in PAGE
    assert (rules.preserve_least, rules.preserve_longest_s) == (5, 600), "at least five; ten minutes"
    assert (FALL, RISE) == (3, 2), "three bad ones in a row, two good ones"


def test_what_needs_a_restart_is_named() -> None:
    named = set(re.findall(r"`([a-z_]+)`", PAGE.split("waits for a restart:")[1].split(". ")[0]))
    assert named == {name for name in needing_restart(RegistrySettings) if not name.startswith(("log_", "tls_"))}
