"""`svcctl services`: what the registry knows, as a table."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from common.discovery.record import ServiceRecord
from common.discovery.registry_client import RegistryClient, RegistryUnavailable
from common.exits import Exit
from common.http.client import make_session

DEFAULT_REGISTRY = "http://localhost:18000"


def main() -> int:
    """Console entry."""
    parser = argparse.ArgumentParser(prog="svcctl", description="Look at the services of a registry.")
    parser.add_argument(
        "--registry-url",
        default=os.environ.get("SVC_REGISTRY_URL", DEFAULT_REGISTRY),
        help="registries, separated by commas (default: SVC_REGISTRY_URL, else %(default)s)",
    )
    parser.add_argument("command", choices=["services"], help="services: list every registered service")
    chosen = parser.parse_args()
    try:
        records = asyncio.run(fetch(chosen.registry_url.split(",")))
    except RegistryUnavailable as error:
        sys.stderr.write(f"svcctl: error: {error}\n")
        return Exit.FAILED
    Console().print(as_table(records))
    return Exit.OK


async def fetch(urls: Sequence[str]) -> list[ServiceRecord]:
    """Every record of the first registry that answers.

    Raises:
        RegistryUnavailable: None does.
    """
    async with make_session(timeout_s=10.0) as session:
        return await RegistryClient(urls, session).list()


def as_table(records: Sequence[ServiceRecord]) -> Table:
    """One row for each record, by name."""
    table = Table("NAME", "TYPE", "STATUS", "HEALTHY", "URL", "MODELS", box=None)
    for record in sorted(records, key=lambda found: found.name):
        models = record.metadata.get("models")
        listed = ", ".join(map(str, models)) if isinstance(models, list) else ""
        healthy = "yes" if record.is_healthy else "no"
        table.add_row(record.name, record.type or "", record.status, healthy, record.url, listed)
    return table


if __name__ == "__main__":
    sys.exit(main())
