"""`python -m registry`, `svc-registry`: the service registry."""

import sys

from common.service import run
from registry.app import serve
from registry.settings import RegistrySettings


def main() -> int:
    """Run the registry; returns its exit code."""
    return run("registry", RegistrySettings, serve)


if __name__ == "__main__":
    sys.exit(main())
