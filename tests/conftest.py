"""For every test: Hypothesis judges what is found, not how busy a shared machine is.

`--random=N` runs them in an order that N decides: files in any order, and within each file its tests.

What tests start hears Ctrl-C, even if they themselves run behind `nohup` or `&`, which have it ignored from there on down.
"""

import random
import signal

import pytest
from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--random", type=int, metavar="N", help="run in the order number N instead of the written one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (number := config.getoption("random")) is None:
        # Files that start real processes first, for two workers to end together: the short ones fill what is left.
        long = {item.path for item in items if item.get_closest_marker("e2e")}
        items.sort(key=lambda item: item.path not in long)
        return
    random.Random(number).shuffle(items)
    files = {path: place for place, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(key=lambda item: files[item.path])  # a file stays together: what its tests share is made once
