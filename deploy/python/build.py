"""Hatchling's build hook: the wheel has the router's data plane compiled where that can be done, and is pure elsewhere.

SVC_COMPILE=no    a pure wheel in any case        SVC_COMPILE=yes    a compiled one, or none
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROGRAM = "deploy/python/compile.py"


class CompiledDataPlane(BuildHookInterface[Any]):
    """Adds what deploy/python/compile.py makes."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, for a wheel that is not editable: the builds of a source tree are in its environment."""
        if version != "standard":
            return
        self._folder = tempfile.TemporaryDirectory(prefix="svc-wheel-")
        program = Path(self.root, PROGRAM)
        subprocess.run([sys.executable, str(program), self._folder.name], check=False, stdout=sys.stderr)  # noqa: S603 - our own
        if any(Path(self._folder.name).iterdir()):
            build_data.update(pure_python=False, infer_tag=True)
            build_data["force_include"][self._folder.name] = "inference_svc/_compiled"
        elif os.environ.get("SVC_COMPILE") == "yes":
            raise RuntimeError("SVC_COMPILE=yes, and the data plane could not be compiled (said above)")
        self.app.display_info(f"wheel: {'compiled' if build_data['infer_tag'] else 'pure'}")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - the interface's
        """The wheel has it."""
        if version == "standard":
            self._folder.cleanup()

    def dependencies(self) -> list[str]:
        """What compiling needs in the environment of the build, where there is a compiler."""
        if os.environ.get("SVC_COMPILE") == "no" or shutil.which(os.environ.get("CC", "cc").split()[0]) is None:
            return []
        return ["mypy>=1.14", "setuptools>=75", "msgspec>=0.19", "httptools>=0.6.4"]
