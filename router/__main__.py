"""`python -m router`: the router's process."""

if __name__ == "__main__":
    import common.quick_start  # noqa: F401 - before all others: see there

import os
import sys
from functools import partial

from common.service import read_settings, run
from common.settings import find_config
from router.assemble import serve
from router.settings import RouterSettings


def main() -> int:
    """Entry point; returns the exit code."""
    config = find_config(env_prefix="SVC_ROUTER_", argv=sys.argv[1:], env=os.environ)
    reread = partial(read_settings, "router", RouterSettings)
    return run("router", RouterSettings, partial(serve, config=config, reread=reread, environment=os.environ))


if __name__ == "__main__":
    sys.exit(main())
