"""For every test: Hypothesis judges what is found, not how busy a shared machine is.

What tests start hears Ctrl-C, even if they themselves run behind `nohup` or `&`, which have it ignored from there on down.
"""

import signal

from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
