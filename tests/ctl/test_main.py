"""The process: one line and an exit code for what goes wrong, help that parses, completion that knows what exists."""

import asyncio
import importlib
import itertools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ctl.codes import MEANINGS, Code
from ctl.command import Listed
from ctl.commands import LISTED
from ctl.parser import build
from tests.ctl.conftest import Suite, record

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "svcctl.md"


def svcctl(*argv: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SVC_")}
    return subprocess.run(
        [sys.executable, "-m", "ctl", *argv],
        cwd=ROOT,
        env={**clean, "SVC_STATE_DIR": str(home / "state"), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_an_unreachable_registry_is_one_line_with_the_next_step_and_its_own_exit_code(tmp_path: Path) -> None:
    done = svcctl("--registry-url", "http://127.0.0.1:1", "services", home=tmp_path)
    assert done.returncode == Code.UNREACHABLE
    assert done.stderr == (
        "svcctl: error: the registry does not answer at http://127.0.0.1:1 (connection refused); "
        "start it with 'svcctl up', or say where it is with --registry-url\n"
    )
    assert done.stdout == ""


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m ctl completion bash | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (Code.PIPE, Code.OK)
    assert done.stderr == ""
    assert tmp_path.exists()


@pytest.mark.parametrize("listed", LISTED, ids=lambda listed: listed.name)
def test_every_example_of_the_help_parses_and_is_of_its_command(listed: Listed) -> None:
    command = listed.load()
    assert command.examples
    for example in command.examples:
        for piped, words in itertools.groupby(shlex.split(example), "|".__eq__):
            program, *rest = words
            if not piped and program == "svcctl":
                given = list(itertools.takewhile(lambda word: word not in (">", "<"), rest))
                build(LISTED, {}, given).parse_args(given)
        assert f"svcctl {command.name}" in example


def test_the_help_of_the_top_names_every_command_and_exit_code() -> None:
    text = build(LISTED, {}, ()).format_help()
    assert [command.name for command in LISTED if f"    {command.name.split()[0]} " not in text + " "] == []
    assert all(meaning in text for meaning in MEANINGS.values())


def test_every_command_of_a_module_is_listed() -> None:
    for name in {command.module for command in LISTED}:
        module = importlib.import_module(f"ctl.commands.{name}")
        listed = [command.name for command in LISTED if command.module == name]
        assert [command.name for command in module.COMMANDS] == listed


def test_the_help_imports_no_client_and_no_models() -> None:
    """A person waits for them: aiohttp and pydantic alone take longer than 0.2 s to import."""
    code = """
import os, sys
from ctl.__main__ import main
sys.argv = ["svcctl", "--help"]
try:
    main()
finally:
    heavy = {"aiohttp", "asyncio", "msgspec", "pydantic", "rich", "yaml"}
    print(sorted(name for name in heavy if type(sys.modules.get(name)) is type(sys)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert "replicas" in done.stdout
    assert done.stderr == "[]\n"


def test_the_flags_of_no_command_import_a_client_or_models() -> None:
    """TAB waits for them; what `ctl.late` binds is there, and not executed."""
    code = """
import sys
from ctl.commands import LISTED
from ctl.parser import build
build(LISTED, {}, {word for command in LISTED for word in command.name.split()})
heavy = {"aiohttp", "common.wire.specification", "pydantic", "rich.console", "urllib.request", "yaml"}
print(sorted(name for name in heavy if type(sys.modules.get(name)) is type(sys)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_flag_counts_before_and_after_the_command() -> None:
    parser = build(LISTED, {"SVC_REGISTRY_URL": "http://env"}, ("services",))
    assert parser.parse_args(["--registry-url", "http://a", "services"]).registry_url == "http://a"
    assert parser.parse_args(["services", "--registry-url", "http://b"]).registry_url == "http://b"
    assert parser.parse_args(["services"]).registry_url == "http://env"
    assert parser.parse_args(["--json", "services"]).json
    assert not parser.parse_args(["services"]).json


def test_no_flag_takes_a_token_itself() -> None:
    """Argv is readable by every user of the machine."""
    text = build(LISTED, {}, ()).format_help()
    assert "--token-file" in text
    assert "--token " not in text


async def test_completion_offers_the_services_that_exist(suite: Suite) -> None:
    suite.answers["registry GET /services"] = {"services": [record("qwen-server"), record("other", metadata={})]}
    offered = await complete(suite, "svcctl drain q")
    assert "qwen-server" in offered


async def test_completion_offers_commands_and_flags_without_any_service(suite: Suite) -> None:
    suite.registry = "http://127.0.0.1:1"
    assert {"services", "status", "doctor"} <= set(await complete(suite, "svcctl "))
    assert "--max-tokens" in await complete(suite, "svcctl chat m --max")


async def complete(suite: Suite, line: str) -> list[str]:
    """What argcomplete offers behind `line`, by its own protocol."""
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SVC_")},
        "SVC_REGISTRY_URL": suite.registry,
        "SVC_STATE_DIR": str(suite.home / "state"),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(suite.home / "offered"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import ctl.__main__ as m; m.main()", cwd=ROOT, env=env
    )
    await asyncio.wait_for(process.wait(), 60)
    return (suite.home / "offered").read_text().split("\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_code_for_each_shell_names_svcctl_and_is_accepted(shell: str, tmp_path: Path) -> None:
    done = svcctl("completion", shell, home=tmp_path)
    assert done.returncode == 0
    assert "svcctl" in done.stdout
    if shutil.which(shell):
        code = tmp_path / "code"
        code.write_text(done.stdout)
        checked = subprocess.run([shell, "-n", str(code)], capture_output=True, text=True, check=False, timeout=30)
        assert checked.stderr == ""


def test_the_page_names_every_command_flag_of_the_places_variable_and_exit_code() -> None:
    page = PAGE.read_text()
    words = {word for command in LISTED for word in command.name.split()}
    assert [word for word in sorted(words) if word not in page] == []
    assert [f"{code.value}" for code, meaning in MEANINGS.items() if f"| {code.value} | {meaning} |" not in page] == []
    variables = ("SVC_REGISTRY_URL", "SVC_ROUTER_URL", "SVC_API_URL", "SVC_TOKEN_FILE", "SVC_KEY_FILE", "SVC_STATE_DIR")
    assert [name for name in variables if f"`{name}`" not in page] == []


def test_bash_completes_a_word_with_that_code(tmp_path: Path) -> None:
    program = tmp_path / "svcctl"
    program.write_text(f'#!/bin/sh\ncd {shlex.quote(str(ROOT))} && exec {shlex.quote(sys.executable)} -m ctl "$@"\n')
    program.chmod(0o755)
    script = f"""
        eval "$({program} completion bash)"
        COMP_LINE='svcctl undr' COMP_POINT=11 COMP_TYPE=9 COMP_WORDS=(svcctl undr) COMP_CWORD=1
        _python_argcomplete svcctl undr svcctl
        echo "${{COMPREPLY[@]}}"
    """
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == "undrain", done.stderr


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["top", "--bad"], "unrecognized arguments: --bad; see 'svcctl --help'"),
        (["replicas", "wait"], "the following arguments are required: ID; see 'svcctl replicas wait --help'"),
        (["nosuch"], "invalid choice: 'nosuch'"),
        (["up", "--registry-port", "x"], "invalid int value: 'x'; see 'svcctl up --help'"),
    ],
)
def test_a_command_line_that_cannot_be_parsed_is_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build(LISTED, {}, argv).parse_args(argv)
    assert ended.value.code == Code.USAGE
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1
