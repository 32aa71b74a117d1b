"""`svcctl usage` against a fake registry."""

import csv
import io
from typing import Any

import pytest

from common.tokens import FIELDS
from ctl.codes import Code
from ctl.commands.usage import moment
from ctl.problem import Problem
from tests.ctl.conftest import Suite

ASKED = "registry GET /api/v1/usage"


def row(*counts: int, **names: str) -> dict[str, Any]:
    return {**names, **dict(zip(FIELDS, counts, strict=True))}


def report(*rows: dict[str, Any]) -> dict[str, Any]:
    total = {field: sum(one[field] for one in rows) for field in FIELDS}
    return {"since": "2026-01-01T00:00:00Z", "until": "2026-01-08T00:00:00Z", "rows": list(rows), "total": total}


async def test_usage_is_a_table_with_its_sum(suite: Suite) -> None:
    suite.answers[ASKED] = report(
        row(3, 4000, 8, 6, 2, 2, key="team", model="m"), row(1, 1, 0, 1, 0, 0, key="", model="n")
    )
    done = await suite.ctl("usage")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["KEY", "MODEL", "REQUESTS", "PROMPT", "CACHED", "COMPLETION", "REASONING", "ESTIMATED"]
    assert lines[1] == ["team", "m", "3", "4,000", "8", "6", "2", "2"]
    assert lines[2][:3] == ["anonymous", "n", "1"]
    assert lines[3] == ["total", "-", "4", "4,001", "8", "7", "2", "2"]


async def test_usage_as_csv_is_for_programs_and_no_formula(suite: Suite) -> None:
    suite.answers[ASKED] = report(row(1, 2, 3, 4, 5, 6, at="2026-01-01T00:00:00Z", key='=cmd|"x",', model="m"))
    done = await suite.ctl("usage", "--by", "key", "--step", "day", "--csv")
    [head, line] = list(csv.reader(io.StringIO(done.stdout)))
    assert head == ["at", "key", *FIELDS]
    assert line == ["2026-01-01T00:00:00Z", '\'=cmd|"x",', "1", "2", "3", "4", "5", "6"]


async def test_usage_as_json_is_the_registrys_answer(suite: Suite) -> None:
    suite.answers[ASKED] = report()
    assert (await suite.ctl("usage", "--json")).json == report()
    assert "nothing was used from 2026-01-01" in (await suite.ctl("usage")).stderr


async def test_a_question_that_is_none_asks_nobody(suite: Suite) -> None:
    for flags in (("--by", "prompt"), ("--since", "yesterday")):
        assert (await suite.ctl("usage", *flags)).code == Code.USAGE
    assert suite.asked == []


def test_moments() -> None:
    assert moment("7d", 1_000_000.0) == str(1_000_000 - 7 * 86_400)
    assert moment("24h", 1_000_000.0) == str(1_000_000 - 86_400)
    assert moment("2026-01-01", 0.0) == "1767225600"
    assert moment("2026-01-01T01:00:00+01:00", 0.0) == "1767225600"
    with pytest.raises(Problem):
        moment("7y", 0.0)
