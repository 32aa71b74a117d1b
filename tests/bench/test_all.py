"""`python -m bench`: what it reads of the programs, and that one that fails costs only its own figures."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as every
from bench.router.figures import Bound

REGISTRY = """\
x86_64, 2 cores
registrations per second (SQLite)                                            373                   
  ratio, median of 8 pairs (quartiles)                          1.67 (1.65-1.68)   <= 1.6          MISSED
change to 100 watchers, p50 / p99                                  7.6 / 15.7 ms   p99 <= 50 ms    holds
"""  # noqa: W291 - as it prints it


def test_bounds_in_lines_are_read_and_other_lines_are_not() -> None:
    assert every.line_bounds(None, REGISTRY) == [
        Bound("ratio, median of 8 pairs (quartiles)", "<= 1.6", "1.67 (1.65-1.68)", holds=False),
        Bound("change to 100 watchers, p50 / p99", "p99 <= 50 ms", "7.6 / 15.7 ms", holds=True),
    ]


def test_what_something_adds_is_the_pairs_ratio_of_what_a_request_costs_without_it() -> None:
    one = {"before_us": 10.0, "ratio": 1.15, "ratio_low": 1.1, "ratio_high": 1.3, "pairs": 40}
    found = every.costs([{"workload": "w1", "what": "key", **one}, {"workload": "w2", "what": "key", **one}], "")
    assert found == [Bound("W1: key adds, µs", "≤ 2", "1.50 (1.00-3.00, n=40)", holds=True)]


def test_tls_costs_what_both_runs_differ_by_and_nothing_is_said_without_one_of_them() -> None:
    def ran(direct_us: float, *ours_us: float) -> every.Outcome:
        found = [("direct", direct_us), *(("ours", it) for it in ours_us)]
        return every.Outcome(
            "", written={"samples": [{"target": it, "workload": "w1", "cpu_us": us} for it, us in found]}
        )

    (cost,) = every.tls_cost(
        {"router": ran(3, 20, 21, 40), "tls": ran(6, 78, 76, 80)}
    )  # the second on half the machine
    assert (cost.measured, cost.holds) == ("18.0 (two runs)", False)
    assert every.tls_cost({"router": ran(3, 20)})[0].holds is None


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two programs: one that measures, one that fails."""
    folder = tmp_path / "bench"
    folder.mkdir()
    bound = asdict(Bound("wait, s", "≤ 3", "2.0", holds=True))
    (folder / "well.py").write_text(
        "import sys, json, pathlib\nprint('### Title')\nprint('| a | b |')\n"
        f"pathlib.Path(sys.argv[-1]).write_text(json.dumps({{'bounds': [{json.dumps(bound).replace('true', 'True')}]}}))\n"
    )
    (folder / "bad.py").write_text("import sys\nsys.exit('no such peer')\n")
    parts = {
        "bad": every.Part("bad.py", "", "", every.line_bounds, writes_json=False),
        "well": every.Part("well.py", "--short", "--long", every.own_bounds),
    }
    monkeypatch.setattr(every, "ROOT", tmp_path)
    monkeypatch.setattr(every, "PARTS", parts)


@pytest.mark.usefixtures("programs")
def test_a_program_that_fails_is_told_of_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def report(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["bench", *words])
        return every.main(), capsys.readouterr().out

    code, text = report("--json", str(tmp_path / "first.json"))
    assert code == 1
    assert "**ended with 1: no such peer**" in text
    assert "`python bench/well.py --short`" in text
    assert "### Title" in text
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert ["well", "wait, s", "≤ 3", "2.0", "holds"] in lines
    assert ["bad", "all", "", "ended with 1: no such peer", "not measured"] in lines

    code, text = report("--only", "well", "--full", "--before", str(tmp_path / "first.json"))
    assert code == 0
    assert "`python bench/well.py --long`" in text
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert ["well", "wait, s", "≤ 3", "2.0", "2.0 holds", "holds"] in lines


def test_every_program_is_there_and_takes_what_it_is_told() -> None:
    folder = Path(every.__file__).parent
    told: dict[str, Any] = {name: (part.script, part.quick, part.full) for name, part in every.PARTS.items()}
    for script, quick, full in told.values():
        text = (folder / script).read_text()
        flags = {word for word in f"{quick} {full}".split() if word.startswith("--")}
        assert [flag for flag in flags if f'"{flag}"' not in text] == []
