import pytest

from registry.outbound.addresses import LOOPBACK, PRIVATE, AddressPolicy, AddressRefused, networks

POLICY = AddressPolicy(networks(PRIVATE + LOOPBACK), own=("127.0.0.1", 18000))


@pytest.mark.parametrize(
    "host",
    ["10.1.2.3", "172.31.0.1", "192.168.0.9", "127.0.0.1", "::1", "[::1]", "fd00::5", "localhost", "gpu-1.lab", "h"],
)
def test_private_addresses_and_names_are_welcome(host: str) -> None:
    POLICY.check(host, 8000)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "::ffff:8.8.8.8",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "255.255.255.255",
        "fe80::1",
        "ff02::1",
        "fd00:ec2::254",
        "8.8.8.8",
        "172.32.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "metadata.google.internal",
        "METADATA.google.internal.",
        "instance-data",
    ],
)
def test_foreign_and_hidden_addresses_are_refused_C16(host: str) -> None:
    with pytest.raises(AddressRefused):
        POLICY.check(host, 8000)


def test_loopback_is_refused_when_the_registry_serves_the_network_C16() -> None:
    with pytest.raises(AddressRefused, match=r"127\.0\.0\.1 is in none"):
        AddressPolicy(networks(PRIVATE)).check("127.0.0.1", 8000)


@pytest.mark.parametrize(("port", "welcome"), [(22, False), (1023, False), (1024, True), (80, True), (443, True)])
def test_low_ports_are_refused(port: int, welcome: bool) -> None:  # noqa: FBT001 - a table's column
    if welcome:
        POLICY.check("10.0.0.1", port)
    else:
        with pytest.raises(AddressRefused, match="below 1024"):
            POLICY.check("10.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_the_registry_itself_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused, match="the registry itself"):
        POLICY.check(host, 18000)


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("http://10.0.0.1:8000", None),
        ("https://10.0.0.1", None),
        pytest.param("http://169.254.169.254", "never allowed", id="M27"),
        pytest.param("http://[::ffff:127.0.0.1]:22", "below 1024", id="M28"),
        ("http://127.0.0.1:18000", "itself"),
    ],
)
def test_url_is_judged_by_host_and_port(url: str, refused: str | None) -> None:
    if refused is None:
        POLICY.check_url(url)
    else:
        with pytest.raises(AddressRefused, match=refused):
            POLICY.check_url(url)


def test_named_hosts_only_when_a_list_is_given() -> None:
    policy = AddressPolicy(networks(PRIVATE), hosts=frozenset({"gpu-1"}))
    policy.check("GPU-1", 8000)
    with pytest.raises(AddressRefused, match="not among"):
        policy.check("gpu-2", 8000)
