"""The catalogue of faults and the tests that cause them name the same rows."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "faults.md"
IN_NAME = re.compile(r"^\s*(?:async )?def (test_\w+)\(", re.MULTILINE)
ID = re.compile(r"W\d+")


def catalogued() -> set[str]:
    return set(re.findall(r"^\| (W\d+) \|", PAGE.read_text(), re.MULTILINE))


def named_by_tests() -> set[str]:
    names = {name for file in (ROOT / "tests").rglob("test_*.py") for name in IN_NAME.findall(file.read_text())}
    return {part for name in names for part in name.split("_") if ID.fullmatch(part)}


def test_every_row_of_the_catalogue_has_a_test_that_causes_it() -> None:
    assert sorted(catalogued() - named_by_tests()) == []


def test_every_id_in_a_tests_name_is_in_the_catalogue() -> None:
    assert sorted(named_by_tests() - catalogued()) == []
