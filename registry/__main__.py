"""`python -m registry`, `svc-registry`: the service registry."""

if __name__ == "__main__":
    import common.quick_start  # noqa: F401 - before all others: see there

import os
import sys
from functools import partial

from common.service import read_settings, run
from common.settings import find_config
from registry.app import serve
from registry.settings import RegistrySettings


def main() -> int:
    """Run the registry; returns its exit code."""
    config = find_config(env_prefix="SVC_REGISTRY_", argv=sys.argv[1:], env=os.environ)
    reread = partial(read_settings, "registry", RegistrySettings)
    return run("registry", RegistrySettings, partial(serve, config=config, reread=reread))


if __name__ == "__main__":
    sys.exit(main())
