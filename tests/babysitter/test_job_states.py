"""One word per job."""

import pytest

from babysitter.job_states import states

PODS = """NAME                        READY   STATUS             RESTARTS   AGE
wsjob-a-coordinator-0       1/1     Running            0          5m
wsjob-a-worker-0            0/1     Pending            0          5m
wsjob-b-coordinator-0       0/1     Completed          0          1h
wsjob-c-worker-0            0/1     CrashLoopBackOff   7          1h
wsjob-c-coordinator-0       1/1     Running            0          1h
wsjob-d-worker-0            0/1     Init:0/1           0          1h
other                       1/1     Running            0          1h
"""


@pytest.mark.parametrize(
    ("job", "state"),
    [
        ("wsjob-a", "Pending"),
        ("wsjob-b", "Completed"),
        ("wsjob-c", "CrashLoopBackOff"),
        ("wsjob-d", "Init:0/1"),
        ("wsjob-e", None),
        ("wsjob", "Init:0/1"),
    ],
)
def test_most_worrying_pod_speaks_for_its_job(job: str, state: str | None) -> None:
    assert states(PODS, [job]).get(job) == state


@pytest.mark.parametrize("output", ["", "x", "\n\n", "No resources found in default namespace."])
def test_output_without_pods_tells_nothing(output: str) -> None:
    assert states(output, ["wsjob-a"]) == {}
