"""What sbatch is told of a job, and what squeue tells of it: PURE, so nothing runs."""

from pathlib import Path

import pytest

from babysitter.agent.accelerators import Need
from babysitter.agent.settings import AgentSettings
from babysitter.agent.slurm import job
from babysitter.agent.slurm.asked import job_of
from babysitter.agent.slurm.job import FORMAT, WIDTHS, BadOption, arguments, checked, choose, notice_of, places, read
from common.http.errors import ApiError
from common.wire.create import GroupPlace

NAME = "isvc-0123456789ab-abcdefghijkl"


def line(**changes: str) -> str:
    cells = {
        "JobID": "7", "Name": NAME, "State": "PENDING", "exit_code": "0", "StartTime": "2026-11-29T08:49:16",
        "EndTime": "N/A", "NodeList": "", "SubmitTime": "2026-11-29T08:49:15", "Partition": "main",
        "Reason": "Resources", **changes,
    }  # fmt: skip
    return "".join(cells[column].ljust(width) for column, width in WIDTHS.items())


def told(options: dict[str, str]) -> list[str]:
    return arguments(options, name=NAME, directory=Path("/root/x"), workdir=Path("/w"), notice_s=60)


def test_every_option_is_one_argument_and_none_can_be_two() -> None:
    options = checked(
        {
            "partition": "a,b",
            "account": "me",
            "constraint": "a100&nvlink",
            "gres": "gpu:a100:2",
            "time_s": 61,
            "cpus": 4,
        }
    )
    argv = told(options)
    for flag in ("--partition=a,b", "--account=me", "--constraint=a100&nvlink", "--gres=gpu:a100:2", "--time=2"):
        assert argv.count(flag) == 1
    assert "--cpus-per-task=4" in argv
    assert all(word.startswith("--") for word in argv)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("partition", "a b"),
        ("partition", "a --wrap=x"),
        ("partition", "-a"),
        ("partition", ""),
        ("partition", "a\nb"),
        ("account", "x" * 65),
        ("gres", "gpu:1;reboot"),
        ("constraint", "$(x)"),
        ("time_s", "1 day"),
        ("time_s", -5),
        ("time_s", True),
        ("cpus", "0"),
        ("wrap", "x"),
        ("export", "ALL"),
    ],
)
def test_what_no_job_may_be_told_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(BadOption, match=f"slurm.{name}"):
        checked({name: value})


def test_an_unknown_version_of_environment_reaches_no_job() -> None:
    argv = told({})
    assert "--export=NIL" in argv
    assert "--no-requeue" in argv
    assert "--dependency=singleton" in argv
    assert "--signal=B:USR1@60" in argv


@pytest.mark.parametrize(("limit", "expected"), [({}, 600), ({"time_s": "7200"}, 600), ({"time_s": "120"}, 60)])
def test_a_short_job_is_warned_at_half_of_its_time(limit: dict[str, str], expected: int) -> None:
    assert notice_of(limit, 600) == expected


def test_squeue_is_read_by_columns_and_others_jobs_are_left_out() -> None:
    text = "\n".join(
        [line(), line(JobID="8", Name="somebody elses"), line(JobID="9_[1-3]"), "", "slurm_load_jobs error"]
    )
    (found,) = read(text, "isvc-0123456789ab-")
    assert (found.number, found.state, found.partition, found.reason) == (7, "PENDING", "main", "Resources")
    assert found.is_queued
    assert not found.is_over
    assert found.start is not None
    assert found.start.isoformat() == "2026-11-29T08:49:16+00:00"
    assert found.end is None
    assert FORMAT.startswith("JobID:20,")


@pytest.mark.parametrize(
    ("told_code", "code"), [("19968", 78), ("9", -9), ("0", 0), ("78:0", 78), ("0:15", -15), ("", None)]
)
def test_exit_codes_of_old_and_new_versions(told_code: str, code: int | None) -> None:
    (found,) = read(line(State="FAILED", exit_code=told_code), "isvc-")
    assert found.code == code
    assert found.is_over


def test_a_cancelled_job_counts_as_one_that_did_not_run() -> None:
    ends = {"EndTime": "2026-11-29T10:49:16", "NodeList": "n1", "Reason": "None"}
    assert read(line(State="CANCELLED", **ends), "isvc-")[0].ran_s == 0
    (failed,) = read(line(State="NODE_FAIL", **ends), "isvc-")
    assert failed.ran_s == 7200
    assert failed.words == "job 7 on n1: NODE_FAIL"


def test_places_are_counted_by_partition() -> None:
    found = places("3  main\n5_[1-9] main\n7  other\n8  main\nbroken\n")
    assert found == {3: (1, 3), 5: (2, 3), 7: (1, 1), 8: (3, 3)}
    (waits,) = read(line(), "isvc-")
    words = job.queue_words(waits, (2, 3))
    assert words == (
        "job 7: position 2 of 3 in partition main, Slurm expects to start it at 2026-11-29T08:49:16Z (Resources)"
    )
    (unknown,) = read(line(StartTime="N/A"), "isvc-")
    assert "no start is expected yet" in job.queue_words(unknown, None)


def test_of_two_jobs_of_one_name_the_one_with_a_node_is_the_replicas_else_the_older() -> None:
    jobs = read("\n".join([line(), line(JobID="9", State="RUNNING"), line(JobID="4", State="FAILED")]), "isvc-")
    assert choose(jobs, None) == jobs[1]
    assert choose(jobs, 7) == jobs[0]
    assert choose(jobs, 4) == jobs[2]
    assert choose(jobs, 5) is None
    assert choose(jobs[2:], None) is None, "one that ended is not adopted"


@pytest.mark.parametrize(
    ("words", "is_away"),
    [
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", True),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", True),
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", False),
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            False,
        ),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", False),
        (
            "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
            False,
        ),
        ("sbatch: error: Batch job submission failed: Access/permission denied", False),
    ],
)
def test_what_slurm_says_when_it_is_away_is_no_refusal(words: str, *, is_away: bool) -> None:
    assert bool(job.UNREACHED.search(words)) is is_away


def test_the_script_quotes_what_it_runs() -> None:
    assert job.script(["/a b/python", "-m", "x"], {"P": "c d"}) == "#!/bin/sh\nP='c d' exec '/a b/python' -m x\n"
    assert job.number_in("17;cluster\n") == 17
    assert job.number_in("sbatch: error") is None


def test_a_member_of_a_group_is_no_job_and_whoever_asks_is_told() -> None:
    """Its address must be known before it runs, and Slurm says only then where that is."""
    settings = AgentSettings(runner="slurm")
    with pytest.raises(ApiError, match="its members cannot be jobs of Slurm") as refused:
        job_of(settings, None, Need(), GroupPlace(rank=0, size=2))
    assert refused.value.status == 422
    assert job_of(AgentSettings(), None, Need(), GroupPlace(rank=0, size=2)) == {}
