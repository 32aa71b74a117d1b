"""`pytest -p tests.compiled tests/router`: the same tests over the compiled data plane, which is built first if need be."""

import subprocess
import sys

from router import compiled

subprocess.run([sys.executable, compiled.ROOT / "deploy/python/compile.py"], check=True)
if not compiled.activate():
    raise RuntimeError("the data plane was built, but not for these sources: were they changed meanwhile?")
