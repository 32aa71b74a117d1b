"""For every test: Hypothesis judges what is found, not how busy a shared machine is.

`--random=N` runs them in an order that N decides: files in any order, and within each file its tests.

A run that is interrupted, or that lost a worker, says which tests had begun and not ended.

What tests start hears Ctrl-C, even if they themselves run behind `nohup` or `&`, which have it ignored from there on down.
"""

import gc
import random
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # a third of the collection of six thousand tests, in each of xdist's workers; on again when it is finished

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


def pytest_collection_finish() -> None:
    """What is there by now stays to the end: each look for garbage would go through all of it."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Time counts in the end of a test that failed, too: pytest-timeout stops its clock there, for a debugger.

    uvloop waits for ever for a server that a failed test did not close.
    """
    if not item.config.getoption("usepdb"):
        plugins = item.config.pluginmanager
        plugins.hook.pytest_timeout_cancel_timer(item=item)
        timeout: Any = plugins.get_plugin("timeout")
        settings = timeout._get_item_settings(item)
        plugins.hook.pytest_timeout_set_timer(item=item, settings=settings)
    return (yield)


_begun: set[str] = set()
"""Here, or in a worker of pytest-xdist; every such event reaches the process that prints."""


def pytest_runtest_logstart(nodeid: str) -> None:
    _begun.add(nodeid)


def pytest_runtest_logfinish(nodeid: str) -> None:
    _begun.discard(nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for nodeid in sorted(_begun):
        terminalreporter.write_line(f"did not end: {nodeid}", red=True)
