"""The router's data plane in the test's own process, on the router's event loop."""

from tests.router.conftest import plane, planes, pytest_asyncio_loop_factories

__all__ = ["plane", "planes", "pytest_asyncio_loop_factories"]
