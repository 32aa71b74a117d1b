"""Imported first by a service's process, which is ready a sixth sooner by that.

While some hundred modules are loaded the garbage collector looks through all of them again and again and finds nothing: it rests
until `ending.run`. And structlog would load rich, which is there for svcctl, for tracebacks as no service prints them; aiohttp
the system's CAs (`late_cas.py`).
"""

import gc
import sys

from common import late_cas

gc.disable()
late_cas.install()
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # which makes its import fail, as if it was not installed
