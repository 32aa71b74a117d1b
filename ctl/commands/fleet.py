"""`svcctl fleet from-configs`: a folder of hand-written babysitter files becomes one fleet file."""

import tomllib
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from common.atomic_file import write_atomic
from ctl import completers
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.commands.request import LIMIT_BYTES
from ctl.from_configs import UnusableConfigs, fleet
from ctl.problem import Problem


def add(parser: ArgumentParser) -> None:
    """Flags of `fleet from-configs`."""
    files = parser.add_argument("files", metavar="FILE", nargs="+", help="babysitters' settings, TOML")
    completers.attach(files, completers.files("toml"))
    output = parser.add_argument("-o", "--output", metavar="FILE", help="write it there instead")
    completers.attach(output, completers.files("yaml", "yml"))


def from_configs(call: Call) -> int:
    """Print or write the fleet file."""
    try:
        text = fleet([(file, _read(Path(file))) for file in call.args.files])
    except UnusableConfigs as error:
        raise Problem(str(error), code=Code.CONFIG) from error
    if call.args.output is None:
        call.out.write(text)
        return Code.OK
    target = Path(call.args.output)
    try:
        write_atomic(target, text.encode(), mode=0o600)  # an env of a file may hold a secret
    except OSError as error:
        raise Problem(f"{target}: {error.strerror}", code=Code.CONFIG) from error
    call.out.note(f"written to {target}; look through its comments, then: svcctl apply -f {target} --diff")
    if call.out.as_json:
        call.out.document({"written": str(target)})
    return Code.OK


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            raw = opened.read(LIMIT_BYTES + 1)
        if len(raw) > LIMIT_BYTES:
            raise Problem(f"{file}: larger than {LIMIT_BYTES} bytes", code=Code.CONFIG)
        return tomllib.loads(raw.decode())
    except OSError as error:
        raise Problem(f"{file}: {error.strerror}", code=Code.CONFIG) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(f"{file}: no valid TOML: {error}", code=Code.CONFIG) from error


COMMANDS = (
    Command(
        "fleet from-configs",
        from_configs,
        add,
        details="Each becomes a deployment that always runs; files that differ only in port and accelerators become\n"
        "replicas of one. What cannot be carried over stands in the output as a comment.",
        examples=(
            "svcctl fleet from-configs config/babysitter1.toml config/babysitter2.toml",
            "svcctl fleet from-configs config/babysitter1.toml config/babysitter2.toml -o fleet.yaml",
        ),
    ),
)
