"""`svcctl`: the process around one command."""

import os
import sys

from ctl.app import run
from ctl.codes import Code


def main() -> int:
    """Console entry."""
    try:
        return run(sys.argv[1:], os.environ, sys.stdout, sys.stderr)
    except BrokenPipeError:
        # The interpreter flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Code.PIPE


if __name__ == "__main__":
    sys.exit(main())
