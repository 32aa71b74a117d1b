"""The catalogue of faults, the tests that cause them and the code that answers them name the same rows."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "faults").glob("*.md"))
ROW = re.compile(r"^\| ([A-Z]\d+(?:, [A-Z]\d+)*) \|.*$", re.MULTILINE)
ID = re.compile(r"(?<![\w\-+/%.])[A-Z]\d{1,2}(?![\w\-%])(?!\.\d)")
IN_NAME = re.compile(r"(?<=_)[A-Z]\d{0,2}(?=_|\b)")
COMMENT = re.compile(r"(?:^|\s)(#.*)$", re.MULTILINE)
TEST = re.compile(r"^\s*(?:async )?def (test_\w+)\(", re.MULTILINE)
HELD_BY = re.compile(r"`(tests/[\w/]+\.py)`")
ELSEWHERE = {"tests/common/ancestors.py": {"U16", "U32"}}
"""What looks like an id and is none: file, and the words."""


@cache
def catalogue() -> dict[str, str]:
    """Each id with its row."""
    return {name: row[0] for page in PAGES for row in ROW.finditer(page.read_text()) for name in row[1].split(", ")}


@cache
def sources() -> tuple[Path, ...]:
    folders = ("babysitter", "bench", "common", "ctl", "registry", "router", "script", "tests")
    return tuple(sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")))


def remarks(source: Path) -> Iterator[str]:
    """Comments and docstrings, those behind members included."""
    text = source.read_text()
    yield from COMMENT.findall(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


@cache
def in_names_of_tests() -> set[str]:
    tests = [path.read_text() for path in sources() if path.name.startswith("test_")]
    return {part for text in tests for name in TEST.findall(text) for part in IN_NAME.findall(name)}


def test_an_id_stands_in_one_row() -> None:
    rows = [name for page in PAGES for row in ROW.finditer(page.read_text()) for name in row[1].split(", ")]
    assert [name for name, count in Counter(rows).items() if count > 1] == []
    assert len(rows) > 200


def test_the_index_names_the_page_of_every_letter() -> None:
    index = (ROOT / "docs" / "faults.md").read_text()
    named = dict(re.findall(r"^\| ([A-Z]) \|.*\]\(faults/(\w+)\.md", index, re.MULTILINE))
    assert named == {
        name[0]: page.stem for page in PAGES for row in ROW.finditer(page.read_text()) for name in [row[1]]
    }


def test_every_id_in_a_tests_name_is_in_the_catalogue() -> None:
    letters = {name[0] for name in catalogue()}
    assert sorted(in_names_of_tests() - catalogue().keys() - letters) == []


def test_every_id_in_a_comment_is_in_the_catalogue() -> None:
    unknown = [
        f"{source.relative_to(ROOT)}: {name}"
        for source in sources()
        for remark in remarks(source)
        for name in ID.findall(remark)
        if name not in catalogue() and name not in ELSEWHERE.get(str(source.relative_to(ROOT)), ())
    ]
    assert unknown == []


def test_every_id_in_a_page_or_a_script_is_in_the_catalogue() -> None:
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md"), *ROOT.glob("script/*.sh")]
    unknown = [
        f"{text.relative_to(ROOT)}: {name}"
        for text in (*texts, ROOT / "pyproject.toml")
        for name in ID.findall(text.read_text())
        if name not in catalogue()
    ]
    assert unknown == []


def test_every_row_is_named_by_a_test_or_by_code_or_says_what_holds_it() -> None:
    """What holds a row that nobody names: a file of tests, or another row that is named."""
    named = {
        name
        for source in sources()
        for name in re.findall(r"(?<![A-Za-z0-9])[A-Z]\d{1,2}(?![A-Za-z0-9])", source.read_text())
    }
    held = {
        name
        for name, row in catalogue().items()
        if any((ROOT / path).is_file() for path in HELD_BY.findall(row)) or named & (set(ID.findall(row)) - {name})
    }
    assert sorted(catalogue().keys() - named - held) == []


def test_every_row_of_what_the_world_showed_has_a_test_that_causes_it() -> None:
    assert sorted({name for name in catalogue() if name.startswith("W")} - in_names_of_tests()) == []
