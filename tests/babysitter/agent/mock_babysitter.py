"""A real babysitter over the mock server instead of a deployed client: for tests in which nothing can be downloaded."""

import json
import sys
from pathlib import Path

from babysitter import settings
from babysitter.__main__ import main
from common.settings import Layer


def _layers(replica_dir: str | None) -> list[Layer]:
    """What `--replica-dir` means, but for the backend."""
    directory = Path(str(replica_dir)).absolute()
    request = json.loads((directory / "request.json").read_text())
    args = request.get("full_config", {}).get("mock", [])
    backend = {"type": "mock", "models": [request["model_name"]], "args": args}
    meant = {"name": directory.name, "on_exit": "detach", "backend": backend, "log_dir": str(directory)}
    return [Layer("test", meant, {})]


settings._replica_layers = _layers

if __name__ == "__main__":
    sys.exit(main())
