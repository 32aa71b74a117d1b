"""PURE: what the running server was started with, against what the settings say now (W31, W56)."""

from collections.abc import Mapping

from babysitter.events import Exited
from babysitter.lifecycle import ReplicaState
from babysitter.spec import Spec


def outdated(started_with: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of the settings that the server was started with other values of; what is not known counts as the same."""
    return [name for name in now if started_with.get(name, now[name]) != now[name]]


def begins_anew(spec: Spec, outcome: Exited, started_with: Mapping[str, str], state: str) -> bool:
    """True when a server's end says nothing of the start that is asked for now.

    Its replica had failed (`state`) and somebody started it again, its exit code asked for a hand to mend something, or
    it was started by other settings.
    """
    mended = outcome.error is not None or outcome.code in spec.policy.no_restart_codes
    return state == ReplicaState.FAILED or mended or (bool(started_with) and started_with != spec.server_settings)
