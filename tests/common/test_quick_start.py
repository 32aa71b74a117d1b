"""What a process loads before it serves: each module is CPU at each start, and memory beside a model."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, gc
sys.argv[0] = "x"
import common.quick_start
import {module}
assert not gc.isenabled()
import ssl
assert ssl.create_default_context().cert_store_stats()["x509"] == 0
print(*[name for name in ("aiohttp", "pydantic", "rich", "yaml") if sys.modules.get(name)])
"""


@pytest.mark.parametrize(
    ("module", "loaded"),
    [
        ("registry.__main__", "aiohttp pydantic"),
        ("router.__main__", "aiohttp pydantic"),
        ("router.worker", "pydantic"),
    ],
)
def test_a_service_loads_no_more_than_it_uses(module: str, loaded: str) -> None:
    program = PROGRAM.format(module=module)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout.strip(), ended.stderr) == (loaded, "")
