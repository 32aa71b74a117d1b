"""What the guides say is there: links, files, variables, flags."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
LAUNCHER = [ROOT / "ctl/launcher/variables.py", *sorted((ROOT / "ctl/launcher/scripts").glob("*.py"))]
"""What reads the variables of the launch scripts."""
SCRIPT_TEXT = "".join(path.read_text() for path in (*sorted((ROOT / "script").glob("*.sh")), *LAUNCHER))
VARIABLE = re.compile(r"`((?:REGISTRY|ROUTER|BABYSITTER|LAUNCH|STOP|SVC|HPCC|CUDA)_[A-Z_]*[A-Z])(?:=[a-z]+)?`")


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub makes anchors of them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", page.read_text())
    assert [path for path, _ in links if path and not (page.parent / path).exists()] == []
    into = [(page.parent / path if path else page, anchor) for path, anchor in links if anchor]
    assert [f"{aim}#{anchor}" for aim, anchor in into if aim.suffix == ".md" and anchor not in anchors(aim)] == []


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "SECURITY.md", "README.md", "docs/architecture.md", "docs/faults.md"]
)
def test_every_file_that_a_page_for_developers_names_is_there(page: str) -> None:
    """Paths in code marks from the project's folder; capitals stand for names that a reader chooses."""
    folders = "babysitter|bench|common|config|ctl|deploy|docs|registry|router|script|tests"
    named = re.findall(rf"`(?:\./)?((?:{folders})/[\w/.-]*)`", (ROOT / page).read_text())
    assert [path for path in named if not (ROOT / path).exists() and not re.search(r"/[A-Z]+\.", path)] == []


@pytest.mark.parametrize("room", ["babysitter", "bench", "common", "ctl", "registry", "router", "script", "tests"])
def test_every_page_and_chapter_that_code_names_is_there(room: str) -> None:
    """`docs/contract.md 5` is a heading that begins with `5.`; of the other pages no numbers are named."""
    lost = []
    for source in [*(ROOT / room).rglob("*.py"), *(ROOT / room).rglob("*.sh")]:
        for page, numbers in re.findall(r"docs/([\w/.-]+\.md)((?:,? (?:and |to )?\d[\d.]*)*)", source.read_text()):
            path = ROOT / "docs" / page
            chapters = set(re.findall(r"^#+ ([\d.]+)\. ", path.read_text(), re.MULTILINE)) if path.is_file() else set()
            if not path.is_file() or not set(re.findall(r"\d+(?:\.\d+)*", numbers)) <= chapters:
                lost.append(f"{source.relative_to(ROOT)}: docs/{page}{numbers}")
    assert lost == []


def test_the_readme_begins_with_the_two_commands() -> None:
    first_screen = (ROOT / "README.md").read_text().splitlines()[:12]
    assert any(line.startswith("./script/launch_all.sh") for line in first_screen)
    assert any(line.startswith("./script/test.sh") for line in first_screen)


def test_every_variable_of_the_table_is_read_by_a_script() -> None:
    named = set(VARIABLE.findall((ROOT / "README.md").read_text()))
    assert len(named) > 20
    assert [name for name in sorted(named) if name not in SCRIPT_TEXT] == []


def test_every_variable_that_the_scripts_take_is_in_the_table() -> None:
    # The template's own block explains itself, in the script.
    text = "".join(path.read_text() for path in (ROOT / "script").glob("*.sh") if "launch_babysitter" not in path.name)
    taken = set(re.findall(r"\$\{((?:REGISTRY|ROUTER|BABYSITTER|STOP|SVC)_[A-Z_]+):-", text))
    launcher = "".join(path.read_text() for path in LAUNCHER)
    taken |= set(re.findall(r'"((?:REGISTRY|ROUTER|AGENT|BABYSITTER|LAUNCH|STOP|SVC)_[A-Z_]+)"', launcher))
    taken.discard("LAUNCH_SCRIPT")  # of the template's block
    assert len(taken) > 25
    readme = (ROOT / "README.md").read_text()
    assert [name for name in sorted(taken) if f"`{name}" not in readme] == []


def test_every_script_and_folder_the_readme_names_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    scripts = re.findall(r"`?(?:\./script/)?((?:launch|stop|status|test|setup)[a-z0-9_]*\.sh)", readme)
    assert len(scripts) > 8
    assert [name for name in scripts if not (ROOT / "script" / name).is_file()] == []
    folders = re.findall(r"^\| `([a-z]+)/` \|", readme, re.MULTILINE)
    assert len(folders) > 7
    assert [name for name in folders if not (ROOT / name).is_dir()] == []


@pytest.mark.parametrize(
    ("section", "module"),
    [
        ("1. Registry", "registry"),
        ("2. Router", "router"),
        ("3. Babysitter", "babysitter"),
        ("5. Replica API", "babysitter.agent"),
    ],
)
def test_every_flag_of_the_contract_page_is_one_of_the_process(section: str, module: str) -> None:
    page = (ROOT / "docs/contract.md").read_text()
    text = page.split(f"## {section}", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"--[a-z][a-z-]+", text.split("\n| call", 1)[0]))
    shown = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert named
    assert [flag for flag in sorted(named) if flag not in shown] == []
