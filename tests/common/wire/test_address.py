"""Hosts with and without brackets."""

import pytest

from common.wire.address import authority, bare, url


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_host_has_brackets_once_in_an_address_and_none_for_a_socket(host: str) -> None:
    assert bare(host) == "::1"
    assert authority(host, 8100) == "[::1]:8100"
    assert url(host, 8100, scheme="https") == "https://[::1]:8100"


def test_a_name_stays_as_it_is() -> None:
    assert (bare("node-1"), authority("node-1", 80), url("node-1", 80)) == ("node-1", "node-1:80", "http://node-1:80")
