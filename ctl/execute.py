"""What happens once the command line is understood: the command runs, and every fault becomes one line and an exit code."""

import asyncio
import inspect
from argparse import Namespace
from collections.abc import Mapping
from typing import TextIO

from ctl.call import Call
from ctl.codes import Code
from ctl.output import Output
from ctl.problem import Problem


def execute(args: Namespace, env: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Run the command that was parsed; returns its exit code.

    Raises:
        BrokenPipeError: Nobody reads standard output any more.
    """
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
