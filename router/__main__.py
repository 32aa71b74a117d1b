"""`python -m router`: the router's process."""

import sys

from common.service import run
from router.master import serve
from router.settings import RouterSettings


def main() -> int:
    """Entry point; returns the exit code."""
    return run("router", RouterSettings, serve)


if __name__ == "__main__":
    sys.exit(main())
