"""For every test: Hypothesis judges what is found, not how busy a shared machine is, and no router compiles itself.

Compiling would load the machine and replace the workers in the middle of a test; those that want a compiled router say so.
"""

import os

from hypothesis import HealthCheck, settings

os.environ["SVC_ROUTER_COMPILED"] = "false"

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
