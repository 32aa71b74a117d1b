"""`svcctl`: reads the command line and the environment, runs one command, gives its exit code."""

import asyncio
import inspect
import os
import sys

import argcomplete

from ctl.call import Call
from ctl.codes import Code
from ctl.commands import COMMANDS
from ctl.output import Output
from ctl.parser import build
from ctl.problem import Problem


def main() -> int:
    """Console entry."""
    parser = build(COMMANDS, os.environ)
    argcomplete.autocomplete(parser)
    args = parser.parse_args(sys.argv[1:])
    out = Output(sys.stdout, sys.stderr, as_json=args.json)
    try:
        result = args.run(Call(args, out, os.environ))
        code = asyncio.run(result) if inspect.iscoroutine(result) else result
        sys.stdout.flush()
    except Problem as problem:
        out.error(problem.line())
        return problem.code
    except KeyboardInterrupt:
        return Code.INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Code.PIPE
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
