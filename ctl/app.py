"""One run of svcctl: command line in, words out, an exit code back."""

from collections.abc import Mapping, Sequence
from typing import TextIO

import argcomplete

from ctl.codes import Code
from ctl.commands import LISTED
from ctl.parser import build


def run(argv: Sequence[str], env: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Run one command; returns its exit code.

    Raises:
        BrokenPipeError: Nobody reads standard output any more.
        SystemExit: argparse's, after `--help` or a command line that cannot be parsed.
    """
    parser = build(LISTED, env, env.get("COMP_LINE", "").split() if "_ARGCOMPLETE" in env else argv)
    argcomplete.autocomplete(parser)
    if not argv:
        parser.print_help(stdout)
        return Code.USAGE
    args = parser.parse_args(argv)
    # What --help and TAB do without is imported after them.
    from common import late_cas  # noqa: PLC0415

    late_cas.install()
    from ctl.execute import execute  # noqa: PLC0415

    return execute(args, env, stdout, stderr)
