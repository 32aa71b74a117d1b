"""PURE: what the running server was started with, against what the settings say now (W31, W56)."""

from collections.abc import Mapping, Sequence
from typing import Any

from babysitter.events import Exited
from babysitter.lifecycle import ReplicaState
from babysitter.spec import Spec


def recalled(labels: Mapping[str, Any]) -> dict[str, str]:
    """The digests that an attempt's labels hold; none of an older babysitter's."""
    told = labels.get("settings")
    return dict(told) if isinstance(told, dict) else {}


def outdated(started_with: Mapping[str, str], now: Mapping[str, str]) -> Sequence[str]:
    """Names of the settings that the server was started with other values of; what is not known counts as the same."""
    return [name for name in now if started_with.get(name, now[name]) != now[name]]


def begins_anew(spec: Spec, outcome: Exited, labels: Mapping[str, Any], state: str) -> bool:
    """True when a server's end says nothing of the start that is asked for now.

    Its replica had failed (`state`) and somebody started it again, its exit code asked for a hand to mend something, or
    it was started by other settings.
    """
    mended = outcome.error is not None or outcome.code in spec.policy.no_restart_codes
    others = recalled(labels)
    return state == ReplicaState.FAILED or mended or (bool(others) and others != spec.server_settings)
