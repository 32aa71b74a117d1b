"""The command that starts the light babysitter."""

import sys
from pathlib import Path

LIGHT = (sys.executable, "-I", "-S", str(Path(__file__).with_name("light.py")))
