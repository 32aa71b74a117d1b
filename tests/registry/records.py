"""A registration for tests: the contract's members, and whatever a test is about."""

from typing import Any

from msgspec import structs

from common.wire.record import Registration


def registration(name: str = "svc", **members: Any) -> Registration:
    """What a service called `name` registers."""
    plain = Registration(name=name, host="h", port=1, hostname="h", url="http://h:1", status="running")
    return structs.replace(plain, **members)
