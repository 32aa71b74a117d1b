import pytest

from common.exits import Exit
from common.names import is_host, is_replica_id, is_service_name


@pytest.mark.parametrize("name", ["a", "9g8b", "Qwen2.5-7B_x", "x" * 128])
def test_service_names(name: str) -> None:
    assert is_service_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-a", "_a", "a/b", "../../etc", "a\nb", "a\n", "a\0", "é", "x" * 129, "a b", "a%2f"]
)
def test_what_is_no_service_name_M16_M24(name: str) -> None:
    assert not is_service_name(name)


def test_replica_ids_have_twelve_characters() -> None:
    assert is_replica_id("abc-12345678")
    for wrong in ("abc", "ABC-12345678", "-bc-12345678", "abc-12345678\n", "abc-123456789"):
        assert not is_replica_id(wrong)


@pytest.mark.parametrize(
    "host",
    ["localhost", "node-1.example.org", "10.0.0.1", "::1", "[fe80::1]", "a", "a" * 63, f"{'a' * 63}.b", "a--b.-c"],
)
def test_hosts(host: str) -> None:
    assert is_host(host)


@pytest.mark.parametrize("host", ["svc_vllm_1", "my_app.team_a", "a_"])
def test_host_of_a_container_may_have_underscores_W19(host: str) -> None:
    assert is_host(host)


@pytest.mark.parametrize("host", ["", "a b", "a/b", "user@host", "a\n", "-a", "a-", "a?b", "a#b", "http://a"])
def test_what_is_no_host(host: str) -> None:
    assert not is_host(host)


@pytest.mark.parametrize(
    "host", ["gpu1..lab", "f..e", "a.", ".a", "a" * 64, f"a.{'b' * 64}", "a." * 127, "a:b", "[::1", "::1%1"]
)
def test_what_no_resolver_can_be_asked_is_no_host(host: str) -> None:
    assert not is_host(host)


def test_exit_codes_are_the_ones_that_supervisors_know_A7() -> None:
    assert (Exit.OK, Exit.FAILED, Exit.USAGE, Exit.SOFTWARE, Exit.CONFIG) == (0, 1, 2, 70, 78)
