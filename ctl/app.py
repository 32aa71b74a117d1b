"""One run of svcctl: command line in, words out, an exit code back."""

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from typing import TextIO

import argcomplete

from ctl.call import Call
from ctl.codes import Code
from ctl.commands import COMMANDS
from ctl.output import Output
from ctl.parser import build
from ctl.problem import Problem


def run(argv: Sequence[str], env: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Run one command; returns its exit code.

    Raises:
        BrokenPipeError: Nobody reads standard output any more.
        SystemExit: argparse's, after `--help` or a command line that cannot be parsed.
    """
    parser = build(COMMANDS, env)
    argcomplete.autocomplete(parser)
    if not argv:
        parser.print_help(stdout)
        return Code.USAGE
    args = parser.parse_args(argv)
    out = Output(stdout, stderr, as_json=args.json)
    try:
        result = args.run(Call(args, out, env))
        code = asyncio.run(result) if inspect.iscoroutine(result) else result
        stdout.flush()
    except Problem as problem:
        out.error(problem)
        return problem.code
    except KeyboardInterrupt:
        return Code.INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder that is not ours: this machine's, and no defect
        out.error(Problem(str(error), hint="'svcctl doctor' looks at disk and limits", code=Code.CONFIG))
        return Code.CONFIG
    return int(code)
