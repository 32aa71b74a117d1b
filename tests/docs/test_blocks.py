"""What every page shows is true: commands exist, their flags too, calls have routes, settings files load."""

import contextlib
import importlib
import io
import json
import re
import shlex
import sys
import unittest.mock
from functools import cache
from typing import Any

import msgspec
import pytest
import tomli
import yaml

from babysitter.agent.settings import AgentSettings
from babysitter.agent.template_file import parse as template_of
from babysitter.agent.template_file import render
from babysitter.agent.template_shown import samples
from babysitter.agent.templates import judge
from babysitter.settings import parse
from common.settings import Layer, SettingsError, build
from ctl.parser import GROUPS
from registry.settings import RegistrySettings
from router.keys import KeyFile
from router.settings import RouterSettings
from tests.docs.pages import GUIDES, PAGES, ROOT, TUTORIAL, Block, blocks

SHELL = [block for page in PAGES for block in blocks(page, "bash")]
PROGRAMS = {
    "svc-registry": "registry",
    "svc-router": "router",
    "svc-agent": "babysitter.agent",
    "svc-babysitter": "babysitter",
    "svcctl": "ctl",
}
SERVICE_OF_PORT = {18000: "registry", 18001: "registry", 8000: "router", 18100: "agent", 8002: "babysitter"}
EXECUTED = {TUTORIAL, *(ROOT / "docs" / "guides" / f"{name}.md" for name in GUIDES)}


def where(block: Block) -> str:
    return block.where


@cache
def help_of(module: str, *words: str) -> str:
    """What the program prints; in this process, which has imported most of it already."""
    main = importlib.import_module(f"{module}.__main__").main
    printed = io.StringIO()
    with (
        unittest.mock.patch.object(sys, "argv", [module, *words, "--help"]),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main()
    return printed.getvalue()


def commands(text: str) -> list[list[str]]:
    """The simple commands of a shell text, as words; good enough for the ones that pages print."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*$|\s+#\s.*$", "", text, flags=re.MULTILINE))
    found = []
    for line in re.split(r"\n|&&|\|\||;|(?<![<>])\|(?!\|)", joined):
        try:
            words = shlex.split(line)
        except ValueError:
            continue  # a quotation over several lines
        while words and re.fullmatch(r"[A-Za-z_]+=.*|\(|\$\(|sudo|exec|until|if|then|do", words[0], re.DOTALL):
            words = words[1:]
        if words:
            found.append([words[0].lstrip("("), *words[1:]])
    return found


@pytest.mark.parametrize("block", SHELL, ids=where)
def test_a_command_of_ours_exists_and_has_the_flags_that_are_shown(block: Block) -> None:
    for words in commands(block.text):
        name = words[0].rpartition("/")[2]
        if name.endswith(".sh"):
            assert (ROOT / "script" / name).is_file(), words
            continue
        module = PROGRAMS.get(name)
        rest = words[1:]
        if name.startswith("python") and rest[:1] == ["-m"]:
            module, rest = rest[1], rest[2:]
        if module not in {*PROGRAMS.values(), "babysitter.mock"}:
            continue
        given = [word.partition("=")[0] for word in rest if word.startswith("--")]
        depth = 0 if module != "ctl" else 2 if rest[:1] and rest[0] in GROUPS else 1
        command = [word for word in rest if not word.startswith("-")][:depth]
        shown = help_of(module, *command)
        assert shown, f"{module} {command} has no help"
        assert [flag for flag in given if flag != "--help" and not re.search(rf"{flag}\b", shown)] == []


@cache
def routes() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Method and pattern of every call, by service, as the reference page has them."""
    found: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    service = ""
    for line in (ROOT / "docs/reference/routes.md").read_text().splitlines():
        if line.startswith("## "):
            service = re.split(r"[ ,:]", line[3:])[0]
        for method, path in re.findall(r"`(?:([A-Z]+) )?(/[^`]*)`", line if line[:1] in "|-" else ""):
            pattern = re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(path))
            found.setdefault(service, []).append((method or "ANY", re.compile(pattern)))
    return found


@pytest.mark.parametrize("block", SHELL, ids=where)
def test_a_call_that_is_shown_has_a_route(block: Block) -> None:
    for words in commands(block.text):
        if words[0] != "curl":
            continue
        method = words[words.index("-X") + 1] if "-X" in words else "POST" if {"-d", "--data"} & set(words) else "GET"
        for port, path in re.findall(r"https?://[a-z0-9.-]+:(\d+)(/[^?\s]*)", " ".join(words)):
            service = SERVICE_OF_PORT.get(int(port))
            if service is not None:
                known = [it for it in routes()[service] if it[0] in (method, "ANY") and it[1].fullmatch(path)]
                assert known, f"{service} has no {method} {path}"


@pytest.mark.parametrize("block", SHELL, ids=where)
def test_a_command_is_run_by_a_test_or_says_why_not(block: Block) -> None:
    if block.page.is_relative_to(ROOT / "docs" / "guides") or block.page == TUTORIAL:
        assert block.page in EXECUTED or not block.is_run, "list the page, or say above the fence: <!-- not run: … -->"


TABLES = [block for page in PAGES for block in blocks(page, "toml", "yaml", "json")]


@pytest.mark.parametrize("block", TABLES, ids=where)
def test_a_settings_file_that_is_shown_is_one(block: Block, tmp_path: Any) -> None:
    if block.kind == "json":
        json.loads(block.text)
        return
    content = tomli.loads(block.text) if block.kind == "toml" else yaml.safe_load(block.text)
    if "parameters" in content:
        judge(render(template := template_of(content), samples(template)[1]))
    elif "backend" in content:
        path = tmp_path / "server.toml"
        path.write_text(block.text)
        parse(["--config-file", str(path)], {})
    elif "cbclient" in content:
        path = tmp_path / "all.toml"
        path.write_text(block.text)
        parse(["--replica-dir", str(tmp_path / "000000000000"), "--port", "20000", "--config-file", str(path)], {})
    elif "keys" in content:
        msgspec.convert(content, KeyFile)
    else:
        services: dict[str, Any] = {"registry": RegistrySettings, "router": RouterSettings, "agent": AgentSettings}
        head = block.note + block.text.partition("\n")[0]
        named = [name for name in services if f"{name}.{block.kind}" in head] or list(services)
        faults = [fault for name in named if (fault := fault_of(services[name], Layer(block.where, content, {})))]
        assert len(faults) < len(named), faults


def fault_of(model: Any, layer: Layer) -> str | None:
    try:
        build(model, [layer])
    except SettingsError as error:
        return str(error)
    return None


def test_every_page_can_be_found_from_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    seen, waiting = set(), [index]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            target = (page.parent / link).resolve()
            found = (
                sorted(target.glob("*.md")) if target.is_dir() and target.is_relative_to(ROOT / "docs") else [target]
            )
            waiting += [one for one in found if one.suffix == ".md" and one not in seen]
    assert [str(page) for page in PAGES if page not in seen] == []


def anchors(page: Any) -> set[str]:
    """Where a link into the page can lead, as the usual renderers name the headings."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_to_a_heading_finds_it(page: Any) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text())
    missing = [
        f"{path}#{anchor}"
        for path, anchor in links
        if path.endswith(".md") or not path
        if anchor not in anchors((page.parent / path) if path else page)
    ]
    assert missing == []
