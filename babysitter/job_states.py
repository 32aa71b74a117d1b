"""PURE: the state of cluster jobs, from the output of a command in the manner of `kubectl get pods`.

Each line is `NAME READY STATUS …`; a job's pods are named after it (`wsjob-ID-coordinator-0`). The states of a job's
pods become one word: the most worrying one.
"""

from collections.abc import Iterable, Sequence

WORRY = (
    "Failed",
    "Error",
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "Unknown",
    "Pending",
    "Running",
    "Succeeded",
    "Completed",
)
LEAST_WORDS = 2


def states(output: str, jobs: Iterable[str]) -> dict[str, str]:
    """State of each of `jobs` that the output knows."""
    rows = [line.split() for line in output.splitlines()]
    pods = [(words[0].rpartition("/")[2], _status(words)) for words in rows if len(words) >= LEAST_WORDS]
    worst = {}
    for job in jobs:
        statuses = [status for name, status in pods if name == job or name.startswith(f"{job}-")]
        if statuses:
            worst[job] = min(statuses, key=_worry)
    return worst


def _status(words: Sequence[str]) -> str:
    """The word that is a known state, else the third column of `kubectl get pods`, else the last one."""
    state_word = next((word for word in words[1:] if word in WORRY), None)
    third = words[LEAST_WORDS] if len(words) > LEAST_WORDS else words[-1]
    return state_word or third


def _worry(status: str) -> int:
    """Place in `WORRY`; a word that nobody knows worries most."""
    return WORRY.index(status) if status in WORRY else -1
